"""ModernGPT and its parts, compared with references that are written differently.

Shapes: B batch, T time, C channels.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import assert_causal, random_ids, run_in_pieces, with_random_weights
from torch import Tensor
from torch.nn import functional as F

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models.gpt import count_parameters
from lit_gpt_scratch.models.modern import ModernGPT, TokenShift, drop_channels, rms_norm

WIDTH = 16
PIECES = st.lists(st.integers(1, 4), min_size=1, max_size=6)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def small_net(layers: int = 2) -> ModernGPT:
    torch.manual_seed(0)
    return ModernGPT(11, 24, layers=layers, width=WIDTH)


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 8))
def test_token_shift_takes_half_of_the_channels_from_the_previous_position(
    batch: int, length: int, half: int
) -> None:
    """It replaces the first half; the first position gets zeros there."""
    x = normal(batch, length, 2 * half)
    y = TokenShift()(x)
    assert not y[:, 0, :half].any()
    for t in range(1, length):
        assert torch.equal(y[:, t, :half], x[:, t - 1, :half])
    assert torch.equal(y[..., half:], x[..., half:])


@given(PIECES)
def test_token_shift_in_pieces_with_a_cache_equals_token_shift_at_once(sizes: list[int]) -> None:
    x = normal(2, sum(sizes), 6)
    assert torch.equal(run_in_pieces(TokenShift(), x, sizes), TokenShift()(x))


def test_the_residual_stream_stays_in_fp32_under_autocast() -> None:
    """Only what is added to it may be rounded to bf16."""
    net = with_random_weights(small_net()).train()
    stream = []
    for part in (*net.blocks, net.unembed):
        part.register_forward_pre_hook(lambda _, inputs: stream.append(inputs[0]))
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(random_ids(11, 2, 7))
    assert logits.dtype == torch.bfloat16
    assert [x.dtype for x in stream] == [torch.float32] * 3
    assert torch.equal(stream[0], rms_norm(net.embed.character.weight)[random_ids(11, 2, 7)])
    assert all((x != x.bfloat16()).any() for x in stream)


@torch.no_grad()
def test_a_modern_gpt_equals_embedding_then_blocks_then_unembedding() -> None:
    """Compared with PyTorch's functions; a logit lens can therefore stop after any block."""
    net = with_random_weights(small_net(layers=3))
    ids = random_ids(11, 2, 7)

    def normed_and_shifted(x: Tensor) -> Tensor:
        normed = F.rms_norm(x, (WIDTH,), eps=0.0)
        previous = torch.cat([torch.zeros(2, 1, WIDTH), normed[:, :-1]], dim=1)
        return torch.where(torch.arange(WIDTH) < WIDTH // 2, previous, normed)

    x = F.rms_norm(net.embed.character.weight[ids], (WIDTH,), eps=0.0)
    torch.testing.assert_close(net.embed(ids), x)
    for block in net.blocks:
        x = x + block.attention(normed_and_shifted(x))
        hidden, output = block.feed_forward.hidden.weight, block.feed_forward.output.weight
        x = x + (normed_and_shifted(x) @ hidden.T).clamp(min=0).square() @ output.T
    logits = F.rms_norm(x, (WIDTH,), eps=0.0) @ net.unembed.character.weight.T
    torch.testing.assert_close(net.unembed(x), logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(net(ids), logits, atol=1e-4, rtol=1e-4)


def test_changing_a_later_character_never_changes_an_earlier_logit() -> None:
    assert_causal(small_net(), 11, 24)


@torch.no_grad()
@given(PIECES)
def test_logits_in_pieces_with_a_cache_equal_logits_at_once(sizes: list[int]) -> None:
    net = with_random_weights(small_net())
    ids = random_ids(11, 2, sum(sizes))
    torch.testing.assert_close(run_in_pieces(net, ids, sizes), net(ids), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_loss_of_an_untrained_network_is_log_v() -> None:
    net = small_net()
    logits = net(random_ids(11, 4, 24))
    assert not logits.any()
    loss = F.cross_entropy(logits.mT, random_ids(11, 4, 24, seed=1))
    assert loss.item() == pytest.approx(math.log(11), rel=1e-6)


@torch.no_grad()
def test_untrained_blocks_leave_the_residual_stream_unchanged() -> None:
    """The projections that add to the stream are zero; so is the unembedding, and no more."""
    net = small_net()
    zero = {name for name, weight in net.named_parameters() if not weight.any()}
    assert zero == {"unembed.character.weight"} | {
        f"blocks.{i}.{part}.output.weight" for i in (0, 1) for part in ("attention", "feed_forward")
    }
    x = net.embed(random_ids(11, 2, 7))
    for block in net.blocks:
        assert torch.equal(block(x), x)


def test_initial_weights_have_the_documented_deviation() -> None:
    """0.5 / sqrt(fan-in). The embedding, which is normed, keeps PyTorch's deviation of 1."""
    torch.manual_seed(0)
    for name, weight in ModernGPT(65, 64).named_parameters():
        if weight.any():
            std = 1.0 if name.startswith("embed") else 0.5 / math.sqrt(weight.size(1))
            # Tolerances: four standard errors of the deviation and of the mean.
            assert weight.std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * weight.numel()))
            assert abs(weight.mean().item()) < 4 * std / math.sqrt(weight.numel()), name


@torch.no_grad()
def test_no_parameter_depends_on_the_context() -> None:
    """Weights trained at one context work at another, and read longer texts."""
    short = with_random_weights(ModernGPT(11, 7, layers=1, width=WIDTH))
    long = ModernGPT(11, 40, layers=1, width=WIDTH)
    long.load_state_dict(short.state_dict())
    ids = random_ids(11, 2, 40)
    assert torch.equal(short(ids), long(ids))


def test_the_default_modern_gpt_has_803_072_parameters() -> None:
    """On Tiny Shakespeare's 65 characters."""
    assert count_parameters(ModernGPT(65, 64)) == 803_072


def test_gradients_in_bf16_are_close_to_those_in_fp32() -> None:
    """Within 3% of each gradient's norm: one rounding is 2^-8, and two blocks have several."""
    exact = with_random_weights(small_net()).train()
    rounded = with_random_weights(small_net()).train()
    ids, targets = random_ids(11, 8, 24), random_ids(11, 8, 24, seed=1)
    for net in (exact, rounded):
        with torch.autocast("cpu", torch.bfloat16, enabled=net is rounded):
            logits = net(ids)
        F.cross_entropy(logits.mT.float(), targets).backward()
    pairs = zip(exact.named_parameters(), rounded.parameters(), strict=True)
    for (name, expected), actual in pairs:
        assert actual.grad.dtype == torch.float32
        assert actual.grad.isfinite().all(), name
        error = (actual.grad - expected.grad).norm() / expected.grad.norm()
        assert error < 2**-5, name


def test_dropout_drops_a_channel_at_all_positions_of_a_text() -> None:
    """Every text has its own mask; channels that stay are scaled up, which keeps the mean."""
    x = 1 + normal(64, 5, 50).square()
    torch.manual_seed(0)
    factors = drop_channels(x, 0.2, training=True) / x
    assert (factors - factors[:, :1]).abs().max() < 1e-6
    kept = factors[:, 0] > 0
    torch.testing.assert_close(factors[:, 0][kept], torch.full((int(kept.sum()),), 1.25))
    assert kept.float().mean().item() == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / kept.numel()))
    assert len(kept.unique(dim=0)) == len(kept)


def test_dropout_acts_in_training_only() -> None:
    net = with_random_weights(ModernGPT(11, 7, layers=1, width=WIDTH, dropout=0.5))
    ids = random_ids(11, 2, 7)
    assert torch.equal(net(ids), net(ids))
    net.train()
    assert not torch.equal(net(ids), net(ids))


@torch.no_grad()
def test_dropout_applies_to_the_embedding_and_to_what_each_part_adds() -> None:
    """With a probability near 1 almost all of it is zero."""
    net = with_random_weights(ModernGPT(11, 7, layers=1, width=WIDTH, dropout=0.99)).train()
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
def test_modern_gpt_refuses_invalid_arguments_by_name(
    arguments: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ModernGPT(**({"alphabet_size": 11, "context": 7} | arguments))
