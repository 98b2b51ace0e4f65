"""The attention mechanisms, compared with references that are written differently.

Shapes: B batch, T time, C channels, H heads, D head size, Q queries.
"""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import assert_causal, reference_weights, run_in_pieces
from torch import Tensor, nn

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models import attention
from lit_gpt_scratch.models.attention import (
    FusedAttention,
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
few_examples = settings(max_examples=10, deadline=None)


def random_input(batch: int, length: int, width: int) -> Tensor:
    """Return x (B, T, C) of variance 1, in double precision, that requires a gradient."""
    generator = torch.Generator().manual_seed(length)
    x = torch.randn(batch, length, width, generator=generator, dtype=torch.double)
    return x.requires_grad_()


def with_large_weights(module: nn.Module) -> nn.Module:
    """Set weights, in double precision, so large that attention is far from uniform."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=2 / math.sqrt(parameter.size(-1)))
    return module.double()


@few_examples
@given(**SIZES)
def test_multi_head_attention_equals_a_loop_over_heads(batch: int, length: int, heads: int) -> None:
    size, width = 3, 3 * heads
    module = with_large_weights(MultiHeadAttention(width, heads))
    x = random_input(batch, length, width)
    query, key, value = module.qkv.weight.split(width)
    for b in range(batch):
        outputs = []
        for h in range(heads):
            rows = slice(h * size, (h + 1) * size)
            q, k, v = (x[b] @ matrix[rows].T for matrix in (query, key, value))
            weights = reference_weights(q, k)
            torch.testing.assert_close(module.weights(x)[b, h], weights)
            outputs.append(weights @ v)
        expected = torch.cat(outputs, dim=1) @ module.output.weight.T
        torch.testing.assert_close(module(x)[b], expected)


@few_examples
@given(**SIZES)
def test_fused_attention_module_equals_multi_head_attention(
    batch: int, length: int, heads: int
) -> None:
    """With the same state dict: output, weights, and all gradients."""
    explicit = with_large_weights(MultiHeadAttention(4 * heads, heads))
    fused = FusedAttention(4 * heads, heads).double()
    fused.load_state_dict(explicit.state_dict())
    x, y = (random_input(batch, length, 4 * heads) for _ in range(2))
    assert torch.equal(fused.weights(x), explicit.weights(x))
    expected, actual = explicit(x), fused(y)
    torch.testing.assert_close(actual, expected)
    expected.square().sum().backward()
    actual.square().sum().backward()
    torch.testing.assert_close(y.grad, x.grad)
    for a, b in zip(explicit.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad)


def random_qkv(heads: int, queries: int, length: int, dtype: torch.dtype) -> list[Tensor]:
    """Return q (B, H, Q, D), k and v (B, H, T, D), which require gradients."""
    generator = torch.Generator().manual_seed(queries)
    shapes = [(2, heads, rows, 4) for rows in (queries, length, length)]
    double = (torch.randn(s, generator=generator, dtype=torch.double) for s in shapes)
    return [x.to(dtype).requires_grad_() for x in double]


@pytest.mark.parametrize("requires_grad", [True, False])
@given(st.integers(1, 9), st.integers(0, 5), st.integers(1, 3))
def test_the_fused_attention_function_equals_the_explicit_one(
    requires_grad: bool, queries: int, cached: int, heads: int
) -> None:
    """Outputs and gradients, for all positions, one last query, and several last queries."""
    length = queries + cached
    inputs = [
        x.requires_grad_(requires_grad) for x in random_qkv(heads, queries, length, torch.double)
    ]
    copies = [x.detach().clone().requires_grad_(requires_grad) for x in inputs]
    actual = fused_attention(*inputs)
    expected = MultiHeadAttention(4 * heads, heads).head_outputs(*copies)
    torch.testing.assert_close(actual, expected)
    if requires_grad:
        actual.square().sum().backward()
        expected.square().sum().backward()
        for x, y in zip(inputs, copies, strict=True):
            torch.testing.assert_close(x.grad, y.grad)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.to(expected.dtype) - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(("queries", "length"), [(6, 6), (1, 9), (4, 9), (40, 40), (3, 64)])
def test_fused_attention_in_bf16_has_rounding_errors_only(queries: int, length: int) -> None:
    """Outputs and gradients, compared with fp32; outputs also where no gradient is required.

    bf16 rounds by up to 2^-8. An output is the sum of rounded weights times values and is rounded
    itself, and the error of a score enters its weight: 2^-7 on average. A gradient has the errors
    of the forward and of the backward pass.
    """
    inputs = random_qkv(3, queries, length, torch.bfloat16)
    exact = [x.detach().float().requires_grad_() for x in inputs]
    actual = fused_attention(*inputs)
    expected = MultiHeadAttention(12, heads=3).head_outputs(*exact)
    assert actual.dtype == torch.bfloat16
    assert actual.shape == expected.shape
    assert relative_error(actual, expected) < 2**-7
    gradient = torch.randn_like(actual)
    actual.backward(gradient)
    expected.backward(gradient.float())
    for x, y in zip(inputs, exact, strict=True):
        assert x.grad.dtype == torch.bfloat16
        assert relative_error(x.grad, y.grad) < 2**-6
    with torch.no_grad():
        assert relative_error(fused_attention(*inputs), expected) < 2**-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_in_fused_attention_keeps_the_mean(dtype: torch.dtype) -> None:
    """fp32 tests PyTorch's kernel; bf16 tests the branch for training in bf16 on a CPU."""
    torch.manual_seed(0)
    q, k, v = (x[:1].detach() for x in random_qkv(2, 3, 6, torch.float32))
    expected = fused_attention(q, k, v)[0]
    many = [x.to(dtype).expand(20_000, -1, -1, -1) for x in (q, k, v)]
    outputs = fused_attention(many[0].requires_grad_(), *many[1:], dropout=0.5).detach().float()
    error = outputs.std(dim=0) / math.sqrt(len(outputs))
    assert (error > 0).all()
    rounding = torch.finfo(dtype).eps * v.abs().max()
    assert ((outputs.mean(dim=0) - expected).abs() < 5 * error + rounding).all()


@given(st.integers(1, 9), st.integers(0, 5))
def test_the_causal_mask_allows_the_past_and_the_position_itself(queries: int, cached: int) -> None:
    mask = causal_mask(queries, queries + cached, torch.device("cpu"))
    expected = [[s <= cached + q for s in range(queries + cached)] for q in range(queries)]
    assert mask.tolist() == expected


@torch.no_grad()
@pytest.mark.parametrize("attention_class", [MultiHeadAttention, FusedAttention])
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_attention_in_pieces_with_a_cache_equals_attention_at_once(
    attention_class: Callable[..., nn.Module], sizes: list[int]
) -> None:
    module = with_large_weights(attention_class(8, heads=2))
    x = random_input(2, sum(sizes), 8)
    torch.testing.assert_close(run_in_pieces(module, x, sizes), module(x))


def test_single_head_attention_equals_multi_head_with_one_head_and_no_projection() -> None:
    single = with_large_weights(SingleHeadAttention(6))
    multi = MultiHeadAttention(6, heads=1).double()
    with torch.no_grad():
        parts = [single.query.weight, single.key.weight, single.value.weight]
        multi.qkv.weight.copy_(torch.cat(parts))
        multi.output.weight.copy_(torch.eye(6, dtype=torch.double))
    x = random_input(2, 7, 6)
    torch.testing.assert_close(single(x), multi(x))
    torch.testing.assert_close(single.weights(x), multi.weights(x))


def test_mean_attention_is_a_cumulative_mean() -> None:
    module = with_large_weights(MeanAttention(6))
    x = random_input(2, 7, 6)
    counts = torch.arange(1, 8)[:, None]
    torch.testing.assert_close(module(x), module.value(x).cumsum(dim=1) / counts)


@pytest.mark.parametrize("attention_class", ALL)
def test_forward_uses_the_attention_weights_that_weights_returns(
    attention_class: Callable[[int], nn.Module],
) -> None:
    """The output is linear in the values, so the weights and the values determine it."""
    module = with_large_weights(attention_class(8)).requires_grad_(False)
    x = random_input(1, 6, 8)[0].detach()
    heads = getattr(module, "heads", 1)
    value = module.qkv.weight[-8:] if hasattr(module, "qkv") else module.value.weight
    values = (x @ value.T).view(6, heads, -1)
    sums = torch.einsum("hts,shd->thd", module.weights(x[None])[0], values).flatten(1)
    expected = sums @ module.output.weight.T if hasattr(module, "output") else sums
    torch.testing.assert_close(module(x[None])[0], expected)


def softmax_over_queries(scores: Tensor) -> Tensor:
    """Like `causal_softmax`, but with the classic mistake: the wrong axis."""
    mask = torch.ones_like(scores, dtype=torch.bool).tril()
    return scores.masked_fill(~mask, -math.inf).softmax(dim=-2)


@pytest.mark.parametrize("attention_class", [SingleHeadAttention, MultiHeadAttention])
def test_the_causality_law_detects_a_softmax_over_the_wrong_axis(
    attention_class: Callable[[int], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wrong weights are still zero for the future, so only this law detects the leak."""
    net = AttentionLM(20, 8, attention_class, width=16)
    assert_causal(net, 20, 8)
    monkeypatch.setattr(attention, "causal_softmax", softmax_over_queries)
    assert not net.attention.weights(random_input(1, 8, 16).float()).triu(1).any()
    with pytest.raises(AssertionError, match="changed the logits at"):
        assert_causal(net, 20, 8)


def test_the_causality_law_detects_a_missing_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    net = AttentionLM(20, 8, MultiHeadAttention, width=16)
    monkeypatch.setattr(attention, "causal_softmax", lambda scores: scores.softmax(dim=-1))
    with pytest.raises(AssertionError, match="changed the logits at"):
        assert_causal(net, 20, 8)


def test_causal_softmax_is_finite_for_huge_scores() -> None:
    weights = causal_softmax(torch.tensor([[1e4, 3e38], [-3e38, 3e38]]))
    assert torch.equal(weights, torch.eye(2))


@pytest.mark.parametrize("attention_class", [MultiHeadAttention, FusedAttention])
def test_attention_dropout_acts_in_training_only_and_keeps_the_mean(
    attention_class: Callable[..., nn.Module],
) -> None:
    module = with_large_weights(attention_class(8, heads=2, dropout=0.5)).requires_grad_(False)
    x = random_input(1, 6, 8).detach()
    expected = module.eval()(x)
    assert torch.equal(module(x), expected)
    outputs = module.train()(x.expand(20_000, -1, -1))
    error = outputs.std(dim=0) / math.sqrt(len(outputs))
    assert (error > 0).all()
    assert ((outputs.mean(dim=0) - expected[0]).abs() < 5 * error).all()


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
def test_attention_refuses_invalid_arguments_by_name(
    attention_class: Callable[..., nn.Module], arguments: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        attention_class(**arguments)
