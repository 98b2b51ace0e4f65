"""The attention mechanisms against references written another way.

Shapes: B batch, T time, C channels, H heads, D head size.
"""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import assert_causal, in_pieces, past_weights
from torch import Tensor, nn

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models import attention
from lit_gpt_scratch.models.attention import (
    FusedAttention,
    KVCache,
    MeanAttention,
    MultiHeadAttention,
    SingleHeadAttention,
    causal_mask,
    causal_softmax,
    fused_attention,
)
from lit_gpt_scratch.models.gpt import AttentionLM

ALL = [MeanAttention, SingleHeadAttention, MultiHeadAttention, FusedAttention]
SIZES = {"batch": st.integers(1, 3), "length": st.integers(1, 9), "heads": st.integers(1, 4)}
PIECES = st.lists(st.integers(1, 4), min_size=1, max_size=6)
laws_of_sizes = settings(max_examples=10, deadline=None)


def inputs(batch: int, length: int, width: int) -> Tensor:
    """x (B, T, C) of variance 1, in double precision, whose gradient can be asked for."""
    generator = torch.Generator().manual_seed(length)
    x = torch.randn(batch, length, width, generator=generator, dtype=torch.double)
    return x.requires_grad_()


def sharp(module: nn.Module) -> nn.Module:
    """In double precision, with weights so large that attention is far from uniform."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=2 / math.sqrt(parameter.size(-1)))
    return module.double()


@laws_of_sizes
@given(**SIZES)
def test_batched_heads_equal_a_loop_over_heads(batch: int, length: int, heads: int) -> None:
    size, width = 3, 3 * heads
    module = sharp(MultiHeadAttention(width, heads))
    x = inputs(batch, length, width)
    query, key, value = module.qkv.weight.split(width)
    for b in range(batch):
        gathered = []
        for h in range(heads):
            rows = slice(h * size, (h + 1) * size)
            q, k, v = (x[b] @ matrix[rows].T for matrix in (query, key, value))
            weights = past_weights(q, k)
            torch.testing.assert_close(module.weights(x)[b, h], weights)
            gathered.append(weights @ v)
        mixed = torch.cat(gathered, dim=1) @ module.output.weight.T
        torch.testing.assert_close(module(x)[b], mixed)


@laws_of_sizes
@given(**SIZES)
def test_fused_equals_explicit(batch: int, length: int, heads: int) -> None:
    """With one state dict: the output, the weights, and all gradients."""
    explicit = sharp(MultiHeadAttention(4 * heads, heads))
    fused = FusedAttention(4 * heads, heads).double()
    fused.load_state_dict(explicit.state_dict())
    x, y = (inputs(batch, length, 4 * heads) for _ in range(2))
    assert torch.equal(fused.weights(x), explicit.weights(x))
    one, other = explicit(x), fused(y)
    torch.testing.assert_close(one, other)
    one.square().sum().backward()
    other.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    for a, b in zip(explicit.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def triple(heads: int, readers: int, length: int, dtype: torch.dtype) -> list[Tensor]:
    """q (B, H, R, D), k and v (B, H, T, D), whose gradients can be asked for."""
    generator = torch.Generator().manual_seed(readers)
    shapes = [(2, heads, rows, 4) for rows in (readers, length, length)]
    double = (torch.randn(s, generator=generator, dtype=torch.double) for s in shapes)
    return [x.to(dtype).requires_grad_() for x in double]


@pytest.mark.parametrize("learns", [True, False])
@given(st.integers(1, 9), st.integers(0, 5), st.integers(1, 3))
def test_fused_attention_equals_what_is_written_out(
    learns: bool, readers: int, before: int, heads: int
) -> None:
    """For all positions, for a lone last reader, for several last ones: outputs and gradients."""
    length = readers + before
    ours = [x.requires_grad_(learns) for x in triple(heads, readers, length, torch.double)]
    theirs = [x.detach().clone().requires_grad_(learns) for x in ours]
    one, other = fused_attention(*ours), MultiHeadAttention(4 * heads, heads).read(*theirs)
    torch.testing.assert_close(one, other)
    if learns:
        one.square().sum().backward()
        other.square().sum().backward()
        for x, y in zip(ours, theirs, strict=True):
            torch.testing.assert_close(x.grad, y.grad)


def relative_error(x: Tensor, y: Tensor) -> float:
    return ((x.to(y.dtype) - y).norm() / y.norm()).item()


@pytest.mark.parametrize(("readers", "length"), [(6, 6), (1, 9), (4, 9), (40, 40), (3, 64)])
def test_fused_attention_in_bf16_is_exact_but_for_rounding(readers: int, length: int) -> None:
    """Outputs and gradients, against fp32 from the same inputs; also where nothing is learned.

    bf16 rounds by up to 2^-8. An output has rounded weights and is rounded itself, and a score's
    error counts in its weight as a whole: 2^-7 in the mean. A gradient goes through it all twice.
    """
    ours = triple(3, readers, length, torch.bfloat16)
    exact = [x.detach().float().requires_grad_() for x in ours]
    one, other = fused_attention(*ours), MultiHeadAttention(12, heads=3).read(*exact)
    assert one.dtype == torch.bfloat16
    assert one.shape == other.shape
    assert relative_error(one, other) < 2**-7
    back = torch.randn_like(one)
    one.backward(back)
    other.backward(back.float())
    for x, y in zip(ours, exact, strict=True):
        assert x.grad.dtype == torch.bfloat16
        assert relative_error(x.grad, y.grad) < 2**-6
    with torch.no_grad():
        assert relative_error(fused_attention(*ours), other) < 2**-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_attentions_dropout_keeps_the_mean(dtype: torch.dtype) -> None:
    """In the branch for training in bf16, and in the other one."""
    torch.manual_seed(0)
    q, k, v = (x[:1].detach() for x in triple(2, 3, 6, torch.float32))
    certain = fused_attention(q, k, v)[0]
    many = [x.to(dtype).expand(20_000, -1, -1, -1) for x in (q, k, v)]
    read = fused_attention(many[0].requires_grad_(), *many[1:], dropout=0.5).detach().float()
    error = read.std(dim=0) / math.sqrt(len(read))
    assert (error > 0).all()
    rounding = torch.finfo(dtype).eps * v.abs().max()
    assert ((read.mean(dim=0) - certain).abs() < 5 * error + rounding).all()


@given(st.integers(1, 9), st.integers(0, 5))
def test_the_last_readers_read_their_past_and_themselves(readers: int, before: int) -> None:
    mask = causal_mask(readers, readers + before, torch.device("cpu"))
    past = [[s <= before + r for s in range(readers + before)] for r in range(readers)]
    assert mask.tolist() == past


@given(PIECES, st.integers(0, 3))
def test_a_cache_gives_back_what_it_got_in_order(sizes: list[int], spare: int) -> None:
    """Each owner its own tensors, of whatever width, always in the same memory."""
    cache = KVCache(sum(sizes) + spare)
    owners = {nn.Identity(): (2, 3), nn.Identity(): (5,)}
    given_so_far = {
        owner: [torch.empty(2, 0, d) for d in widths] for owner, widths in owners.items()
    }
    memory: dict[nn.Module, list[int]] = {}
    for size in sizes:
        for owner, widths in owners.items():
            new = [torch.randn(2, size, d) for d in widths]
            pairs = zip(given_so_far[owner], new, strict=True)
            given_so_far[owner] = [torch.cat(pair, dim=1) for pair in pairs]
            found = cache.extend(owner, *new)
            for one, other in zip(found, given_so_far[owner], strict=True):
                assert torch.equal(one, other)
            assert memory.setdefault(owner, [x.data_ptr() for x in found]) == [
                x.data_ptr() for x in found
            ]
        cache.length += size
    assert not memory.keys() - owners.keys()
    assert len({pointer for pointers in memory.values() for pointer in pointers}) == 3


@pytest.mark.parametrize("size", [1, 2])
def test_more_than_a_cache_holds_is_an_error(size: int) -> None:
    """And never lost."""
    cache, owner = KVCache(4), nn.Identity()
    cache.extend(owner, torch.zeros(2, 4, 3))
    cache.length = 4
    with pytest.raises((AssertionError, RuntimeError)):
        cache.extend(owner, torch.zeros(2, size, 3))


@torch.no_grad()
@pytest.mark.parametrize("attention_class", [MultiHeadAttention, FusedAttention])
@given(PIECES)
def test_attention_in_pieces_equals_attention_to_the_whole(
    attention_class: Callable[..., nn.Module], sizes: list[int]
) -> None:
    module = sharp(attention_class(8, heads=2))
    x = inputs(2, sum(sizes), 8)
    torch.testing.assert_close(in_pieces(module, x, sizes), module(x))


def test_a_single_head_is_multi_head_with_one_head_that_mixes_nothing() -> None:
    single = sharp(SingleHeadAttention(6))
    multi = MultiHeadAttention(6, heads=1).double()
    with torch.no_grad():
        parts = [single.query.weight, single.key.weight, single.value.weight]
        multi.qkv.weight.copy_(torch.cat(parts))
        multi.output.weight.copy_(torch.eye(6, dtype=torch.double))
    x = inputs(2, 7, 6)
    torch.testing.assert_close(single(x), multi(x))
    torch.testing.assert_close(single.weights(x), multi.weights(x))


def test_mean_attention_is_a_cumulative_mean() -> None:
    module = sharp(MeanAttention(6))
    x = inputs(2, 7, 6)
    counts = torch.arange(1, 8)[:, None]
    torch.testing.assert_close(module(x), module.value(x).cumsum(dim=1) / counts)


@pytest.mark.parametrize("attention_class", ALL)
def test_the_weights_shown_are_those_used(attention_class: Callable[[int], nn.Module]) -> None:
    """The output is linear in the values, so position s counts in reader t by its weight."""
    module = sharp(attention_class(8)).requires_grad_(False)
    x = inputs(1, 6, 8)[0].detach()
    heads = getattr(module, "heads", 1)
    value = module.qkv.weight[-8:] if hasattr(module, "qkv") else module.value.weight
    values = (x @ value.T).view(6, heads, -1)
    read = torch.einsum("hts,shd->thd", module.weights(x[None])[0], values).flatten(1)
    output = read @ module.output.weight.T if hasattr(module, "output") else read
    torch.testing.assert_close(module(x[None])[0], output)


def softmax_over_readers(scores: Tensor) -> Tensor:
    """The classic mistake: the same as `causal_softmax` but for the axis."""
    past = torch.ones_like(scores, dtype=torch.bool).tril()
    return scores.masked_fill(~past, -math.inf).softmax(dim=-2)


@pytest.mark.parametrize("attention_class", [SingleHeadAttention, MultiHeadAttention])
def test_the_causality_law_catches_a_softmax_over_the_wrong_axis(
    attention_class: Callable[[int], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mistaken weights still have no future in them: only the law sees the leak."""
    net = AttentionLM(20, 8, attention_class, width=16)
    assert_causal(net, 20, 8)
    monkeypatch.setattr(attention, "causal_softmax", softmax_over_readers)
    assert not net.attention.weights(inputs(1, 8, 16).float()).triu(1).any()
    with pytest.raises(AssertionError, match="changed an earlier logit"):
        assert_causal(net, 20, 8)


def test_the_causality_law_catches_a_missing_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    net = AttentionLM(20, 8, MultiHeadAttention, width=16)
    monkeypatch.setattr(attention, "causal_softmax", lambda scores: scores.softmax(dim=-1))
    with pytest.raises(AssertionError, match="changed an earlier logit"):
        assert_causal(net, 20, 8)


def test_causal_softmax_survives_scores_of_any_size() -> None:
    weights = causal_softmax(torch.tensor([[1e4, 3e38], [-3e38, 3e38]]))
    assert torch.equal(weights, torch.eye(2))


@pytest.mark.parametrize("attention_class", [MultiHeadAttention, FusedAttention])
def test_attention_dropout_acts_in_training_alone(
    attention_class: Callable[..., nn.Module],
) -> None:
    """And leaves the mean as it is: what is kept is scaled up."""
    module = sharp(attention_class(8, heads=2, dropout=0.5)).requires_grad_(False)
    x = inputs(1, 6, 8).detach()
    certain = module.eval()(x)
    assert torch.equal(module(x), certain)
    many = module.train()(x.expand(20_000, -1, -1))
    error = many.std(dim=0) / math.sqrt(len(many))
    assert (error > 0).all()
    assert ((many.mean(dim=0) - certain[0]).abs() < 5 * error).all()


@pytest.mark.parametrize("attention_class", [MultiHeadAttention, FusedAttention])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 6, "heads": 4}, "width is 6 and heads is 4"),
        ({"width": 4, "heads": 8}, "width is 4 and heads is 8"),
        ({"width": 0}, "width is 0"),
        ({"width": -4}, "width is -4"),
        ({"width": 4, "heads": 0}, "heads is 0"),
        ({"width": 4, "heads": -2}, "heads is -2"),
        ({"width": 4, "dropout": -0.1}, "dropout is -0.1"),
        ({"width": 4, "dropout": 1.0}, "dropout is 1.0"),
        ({"width": 4, "dropout": math.nan}, "dropout is nan"),
    ],
)
def test_sizes_that_cannot_be_are_refused_by_name(
    attention_class: Callable[..., nn.Module], arguments: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        attention_class(**arguments)
