"""What ModernGPT is made of, against references written another way.

Shapes: B batch, T time, C channels, H heads, D head size.
"""

import cmath
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import assert_causal, in_pieces, past_weights, random_ids, stirred
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models.attention import RotaryAttention, rms_norm, rotate, rotations
from lit_gpt_scratch.models.gpt import count_parameters
from lit_gpt_scratch.models.modern import ModernGPT, TokenShift, drop_channels

WIDTH, HEADS = 16, 2
PIECES = st.lists(st.integers(1, 4), min_size=1, max_size=6)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def a_net(layers: int = 2) -> ModernGPT:
    torch.manual_seed(0)
    return ModernGPT(11, 24, layers=layers, width=WIDTH)


# RMSNorm


def test_the_gradient_of_rms_norm_is_that_of_finite_differences() -> None:
    x = normal(3, 5, dtype=torch.double).requires_grad_()
    assert torch.autograd.gradcheck(rms_norm, (x,))


@given(st.integers(1, 4), st.integers(1, 9), st.floats(-3, 3))
def test_rms_norm_equals_pytorchs(rows: int, width: int, size: float) -> None:
    """Value and gradient, whatever the size of what comes in."""
    ours = (10**size * normal(rows, width)).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    one, other = rms_norm(ours), F.rms_norm(theirs, (width,), eps=0.0)
    torch.testing.assert_close(one, other)
    back = normal(rows, width, seed=1)
    one.backward(back)
    other.backward(back)
    # Where nothing is to be gained (in one channel, say), both have rounding alone.
    torch.testing.assert_close(10**size * ours.grad, 10**size * theirs.grad, atol=1e-5, rtol=1e-4)


def test_a_vector_of_zeros_has_no_direction() -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    y = rms_norm(x)
    y.sum().backward()
    assert not y.any()
    assert x.grad.isfinite().all()


def test_rms_norm_has_the_type_that_autocast_would_ask_for_next() -> None:
    """Or the one that is asked for. It rounds once, at the end; gradients have the input's."""
    x, y = (normal(6, 32).requires_grad_() for _ in range(2))
    exact = rms_norm(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = rms_norm(y)
        assert rms_norm(y, torch.float32).dtype == torch.float32
    assert exact.dtype == torch.float32
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, exact.bfloat16())
    back = normal(6, 32, seed=1)
    exact.backward(back)
    rounded.backward(back.bfloat16())
    assert y.grad.dtype == torch.float32
    assert (y.grad - x.grad).norm() < 2**-7 * x.grad.norm()


def test_the_residual_stream_is_never_rounded() -> None:
    """Not under autocast either: what is added to it may be."""
    net = stirred(a_net()).train()
    seen = []
    for part in (*net.blocks, net.unembed):
        part.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(random_ids(11, 2, 7))
    assert logits.dtype == torch.bfloat16
    assert [x.dtype for x in seen] == [torch.float32] * 3
    assert torch.equal(seen[0], rms_norm(net.embed.character.weight)[random_ids(11, 2, 7)])
    assert all((x != x.bfloat16()).any() for x in seen)


# Rotary positions


@given(st.integers(1, 40), st.integers(0, 300), st.sampled_from([2, 4, 10]))
def test_rotating_keeps_lengths(length: int, start: int, size: int) -> None:
    x = normal(2, length, 3, size, seed=start)
    torch.testing.assert_close(rotate(x, start).norm(dim=-1), x.norm(dim=-1))


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300), st.sampled_from([2, 4, 10]))
def test_a_dot_product_depends_on_the_distance_alone(
    i: int, j: int, further: int, size: int
) -> None:
    """To fp32's rounding of angles of up to 600."""
    q, k = (F.normalize(normal(1, 1, 1, size, seed=seed), dim=-1) for seed in (1, 2))
    near, far = ((rotate(q, i + by) * rotate(k, j + by)).sum().item() for by in (0, further))
    assert near == pytest.approx(far, abs=3e-4)


def turned(vector: Tensor, position: int) -> Tensor:
    """One vector (D,), channel pair by channel pair."""
    pairs = []
    for i in range(0, len(vector), 2):
        angle = position * 10_000 ** (-i / len(vector))
        pair = complex(vector[i], vector[i + 1]) * cmath.exp(1j * angle)
        pairs += [pair.real, pair.imag]
    return torch.tensor(pairs, dtype=vector.dtype)


@given(st.integers(1, 9), st.integers(0, 60), st.sampled_from([2, 4, 10]))
def test_each_pair_of_channels_turns_by_the_position_at_its_own_pace(
    length: int, start: int, size: int
) -> None:
    x = normal(1, length, 1, size)
    reference = torch.stack([turned(x[0, t, 0], start + t) for t in range(length)])
    torch.testing.assert_close(rotate(x, start)[0, :, 0], reference, atol=1e-5, rtol=1e-4)


@given(st.integers(1, 9), st.integers(0, 60), st.integers(0, 9))
def test_a_start_is_a_slice_of_something_longer(length: int, start: int, after: int) -> None:
    """To the bit, so that a cache changes nothing; and position 0 does not turn."""
    x = normal(2, start + length + after, 3, 4)
    whole = rotate(x, 0)
    end = start + length
    assert torch.equal(rotate(x[:, start:end].contiguous(), start), whole[:, start:end])
    assert torch.equal(whole[:, 0], x[:, 0])


def test_rotations_that_were_made_for_sampling_serve_training() -> None:
    rotations.cache_clear()
    x = normal(2, 5, 3, 4).requires_grad_()
    with torch.inference_mode():
        rotate(x, 0)
    rotate(x, 0).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())


# Rotary attention


def sharp(module: RotaryAttention) -> RotaryAttention:
    """In double precision, with weights so large that attention is far from uniform."""
    for i, parameter in enumerate(module.parameters()):
        nn.init.normal_(parameter, std=2.0, generator=torch.Generator().manual_seed(i))
    return module.double()


@given(st.integers(1, 9), st.integers(1, 3), st.sampled_from([2, 6]))
def test_rotary_attention_equals_a_loop_over_heads_and_readers(
    length: int, heads: int, size: int
) -> None:
    width = heads * size
    module = sharp(RotaryAttention(width, heads))
    x = normal(2, length, width, dtype=torch.double)
    matrices = module.qkv.weight.split(width)
    for b in range(2):
        gathered = []
        for h in range(heads):
            rows = slice(h * size, (h + 1) * size)
            q, k, v = ((x[b] @ matrix[rows].T).detach() for matrix in matrices)
            q, k = (
                torch.stack(
                    [turned(row / row.square().mean().sqrt(), t) for t, row in enumerate(y)]
                )
                for y in (q, k)
            )
            weights = past_weights(q, k)
            torch.testing.assert_close(module.weights(x)[b, h], weights, atol=1e-5, rtol=1e-4)
            gathered.append(weights @ v)
        mixed = torch.cat(gathered, dim=1) @ module.output.weight.T
        torch.testing.assert_close(module(x)[b], mixed, atol=1e-4, rtol=1e-4)


def test_queries_and_keys_have_a_root_mean_square_of_1() -> None:
    """However long what they are made of; values keep their size."""
    module = sharp(RotaryAttention(WIDTH, HEADS))
    x = 30 * normal(2, 7, WIDTH, dtype=torch.double)
    q, k, v = module.split(x, 5)
    for y in (q, k):
        assert y.shape == (2, HEADS, 7, WIDTH // HEADS)
        torch.testing.assert_close(y.square().mean(-1), torch.ones_like(y[..., 0]))
    values = x @ module.qkv.weight[-WIDTH:].T
    torch.testing.assert_close(v.transpose(1, 2).flatten(2), values)


@torch.no_grad()
@given(PIECES)
def test_rotary_attention_in_pieces_equals_that_to_the_whole(sizes: list[int]) -> None:
    module = sharp(RotaryAttention(WIDTH, HEADS))
    x = normal(2, sum(sizes), WIDTH, dtype=torch.double)
    torch.testing.assert_close(in_pieces(module, x, sizes), module(x))


@pytest.mark.parametrize(("width", "heads"), [(6, 2), (3, 1), (9, 3)])
def test_a_head_of_odd_size_is_refused(width: int, heads: int) -> None:
    """Channels turn in pairs."""
    with pytest.raises(InputError, match=f"width is {width} and heads is {heads}: .* even size"):
        RotaryAttention(width, heads)


# Token shift


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 8))
def test_half_of_the_channels_come_from_the_position_before(
    batch: int, length: int, half: int
) -> None:
    """The first half; the first position has zeros there."""
    x = normal(batch, length, 2 * half)
    y = TokenShift()(x)
    assert not y[:, 0, :half].any()
    for t in range(1, length):
        assert torch.equal(y[:, t, :half], x[:, t - 1, :half])
    assert torch.equal(y[..., half:], x[..., half:])


@given(PIECES)
def test_a_shift_in_pieces_equals_that_of_the_whole(sizes: list[int]) -> None:
    x = normal(2, sum(sizes), 6)
    assert torch.equal(in_pieces(TokenShift(), x, sizes), TokenShift()(x))


# The network


@torch.no_grad()
def test_a_modern_gpt_is_embedding_blocks_and_unembedding_in_a_row() -> None:
    """Against PyTorch's functions, so that a logit lens may stop after any block."""
    net = stirred(a_net(layers=3))
    ids = random_ids(11, 2, 7)

    def read(x: Tensor) -> Tensor:
        normed = F.rms_norm(x, (WIDTH,), eps=0.0)
        before = torch.cat([torch.zeros(2, 1, WIDTH), normed[:, :-1]], dim=1)
        return torch.where(torch.arange(WIDTH) < WIDTH // 2, before, normed)

    x = F.rms_norm(net.embed.character.weight[ids], (WIDTH,), eps=0.0)
    torch.testing.assert_close(net.embed(ids), x)
    for block in net.blocks:
        x = x + block.attention(read(x))
        hidden, output = block.feed_forward.hidden.weight, block.feed_forward.output.weight
        x = x + (read(x) @ hidden.T).clamp(min=0).square() @ output.T
    logits = F.rms_norm(x, (WIDTH,), eps=0.0) @ net.unembed.character.weight.T
    torch.testing.assert_close(net.unembed(x), logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(net(ids), logits, atol=1e-4, rtol=1e-4)


def test_changing_a_later_character_never_changes_an_earlier_logit() -> None:
    assert_causal(a_net(), 11, 24)


@torch.no_grad()
@given(PIECES)
def test_a_text_read_in_pieces_has_the_logits_of_the_whole(sizes: list[int]) -> None:
    net = stirred(a_net())
    ids = random_ids(11, 2, sum(sizes))
    torch.testing.assert_close(in_pieces(net, ids, sizes), net(ids), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_untrained_networks_loss_is_log_v() -> None:
    net = a_net()
    logits = net(random_ids(11, 4, 24))
    assert not logits.any()
    loss = F.cross_entropy(logits.mT, random_ids(11, 4, 24, seed=1))
    assert loss.item() == pytest.approx(math.log(11), rel=1e-6)


@torch.no_grad()
def test_at_the_start_every_block_does_nothing() -> None:
    """What writes into the residual stream is zero, and nothing else but the unembedding."""
    net = a_net()
    zero = {name for name, weight in net.named_parameters() if not weight.any()}
    assert zero == {"unembed.character.weight"} | {
        f"blocks.{i}.{part}.output.weight" for i in (0, 1) for part in ("attention", "feed_forward")
    }
    x = net.embed(random_ids(11, 2, 7))
    for block in net.blocks:
        assert torch.equal(block(x), x)


def test_what_reads_starts_with_half_the_deviation_that_keeps_sizes() -> None:
    """0.5 / sqrt(fan-in); embeddings, whose size does not count, with PyTorch's 1."""
    torch.manual_seed(0)
    for name, weight in ModernGPT(65, 64).named_parameters():
        if weight.any():
            std = 1.0 if name.startswith("embed") else 0.5 / math.sqrt(weight.size(1))
            # Four standard errors of a deviation, and of a mean.
            assert weight.std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * weight.numel()))
            assert abs(weight.mean().item()) < 4 * std / math.sqrt(weight.numel()), name


@torch.no_grad()
def test_nothing_in_the_network_has_the_size_of_the_context() -> None:
    """Weights of one context are those of another, and may read further."""
    short = stirred(ModernGPT(11, 7, layers=1, width=WIDTH))
    long = ModernGPT(11, 40, layers=1, width=WIDTH)
    long.load_state_dict(short.state_dict())
    ids = random_ids(11, 2, 40)
    assert torch.equal(short(ids), long(ids))


def test_the_default_modern_gpt_has_803_072_parameters() -> None:
    """On Tiny Shakespeare's 65 characters."""
    assert count_parameters(ModernGPT(65, 64)) == 803_072


def test_gradients_in_bf16_are_close_to_those_in_fp32() -> None:
    """Each parameter's to 3% of its length: a rounding is 2^-8, and two blocks have some."""
    exact = stirred(a_net()).train()
    rounded = stirred(a_net()).train()
    ids, targets = random_ids(11, 8, 24), random_ids(11, 8, 24, seed=1)
    for net in (exact, rounded):
        with torch.autocast("cpu", torch.bfloat16, enabled=net is rounded):
            logits = net(ids)
        F.cross_entropy(logits.mT.float(), targets).backward()
    for (name, one), other in zip(exact.named_parameters(), rounded.parameters(), strict=True):
        assert other.grad.dtype == torch.float32
        assert other.grad.isfinite().all(), name
        error = (other.grad - one.grad).norm() / one.grad.norm()
        assert error < 2**-5, name


def test_a_text_loses_a_channel_at_all_positions_or_at_none() -> None:
    """Each text its own; what stays is scaled so that the mean does."""
    x = 1 + normal(64, 5, 50).square()
    torch.manual_seed(0)
    factors = drop_channels(x, 0.2, training=True) / x
    assert (factors - factors[:, :1]).abs().max() < 1e-6
    kept = factors[:, 0] > 0
    torch.testing.assert_close(factors[:, 0][kept], torch.full((int(kept.sum()),), 1.25))
    assert kept.float().mean().item() == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / kept.numel()))
    assert len(kept.unique(dim=0)) == len(kept)


def test_dropout_acts_in_training_alone() -> None:
    net = stirred(ModernGPT(11, 7, layers=1, width=WIDTH, dropout=0.5))
    ids = random_ids(11, 2, 7)
    assert torch.equal(net(ids), net(ids))
    net.train()
    assert not torch.equal(net(ids), net(ids))


@torch.no_grad()
def test_dropout_falls_on_the_embedding_and_on_what_each_part_adds() -> None:
    """At a probability near 1 almost nothing is left of either."""
    net = stirred(ModernGPT(11, 7, layers=1, width=WIDTH, dropout=0.99)).train()
    torch.manual_seed(0)
    assert (net.embed(random_ids(11, 64, 7)) == 0).float().mean() > 0.95
    x = normal(64, 7, WIDTH)
    assert (net.blocks[0](x) == x).float().mean() > 0.95


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context": 0}, "context is 0"),
        ({"layers": 0}, "layers is 0"),
        ({"width": 0}, "width is 0"),
        ({"width": -4}, "width is -4"),
        ({"width": 15}, "heads must divide the width"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.5}, "dropout is -0.5"),
        ({"dropout": math.nan}, "dropout is nan"),
    ],
)
def test_sizes_that_cannot_be_are_refused_by_name(
    arguments: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ModernGPT(**({"alphabet_size": 11, "context": 7} | arguments))
