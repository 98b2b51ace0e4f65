"""The attention mechanisms against references written another way.

Shapes: B batch, T time, C channels, H heads, D head size.
"""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import assert_causal, past_weights
from torch import Tensor, nn

from lit_gpt_scratch import attention
from lit_gpt_scratch.attention import (
    FusedAttention,
    MeanAttention,
    MultiHeadAttention,
    SingleHeadAttention,
    causal_softmax,
)
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models import AttentionLM

ALL = [MeanAttention, SingleHeadAttention, MultiHeadAttention, FusedAttention]
SIZES = {"batch": st.integers(1, 3), "length": st.integers(1, 9), "heads": st.integers(1, 4)}
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
