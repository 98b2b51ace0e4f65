"""`logit_attribution` splits logits into a sum, checked against networks without each part.

Shapes: T characters of a text, C channels, V alphabet size, P parts.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from laws import with_random_weights
from reference_networks import (
    TEXT,
    attention_of,
    every_single,
    layers_of,
    logits,
    model_named,
    residual,
    single_network,
)
from torch import Tensor, nn

from lit_gpt_scratch import inspection
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models import GPT, AttentionLM, Bigram
from lit_gpt_scratch.models.attention import MultiHeadAttention


def unembed_with_scale_of(net: Any, vector: Tensor, x: Tensor) -> Tensor:
    """Return what a vector (C,) adds to the logits (V,) of a residual stream x (C,)."""
    if isinstance(net, AttentionLM):
        return vector @ net.unembed.weight.T
    if isinstance(net, GPT):
        deviation = (x.var(correction=0) + 1e-5).sqrt()
        vector = (vector - vector.mean()) / deviation * net.unembed[0].weight
        return vector @ net.unembed[1].weight.T
    return vector / x.square().mean().sqrt() @ net.unembed.character.weight.T


def head_output(attention: Any, x: Tensor, head: int) -> Tensor:
    """Return what one head writes (T, C): the attention without the columns of all others."""
    attention = copy.deepcopy(attention)
    columns = attention.output.weight
    by_head = columns.view(len(columns), attention.heads, -1)
    for other in range(attention.heads):
        if other != head:
            by_head[:, other] = 0
    return attention(x[None])[0]


def inputs(net: nn.Module, module: nn.Module, ids: Tensor) -> Tensor:
    found = []
    handle = module.register_forward_pre_hook(lambda _, x: found.append(x[0][0]))
    net(ids[None])
    handle.remove()
    return found[0]


@every_single
@torch.no_grad()
@pytest.mark.parametrize("position", [0, 5, None])
def test_the_sum_over_the_parts_is_the_logits(config: Path, position: int | None) -> None:
    model = single_network(config)
    found = inspection.logit_attribution(model, TEXT, position)
    expected = logits(model.net, model.tokenizer.encode(TEXT))[-1 if position is None else position]
    assert len(found.parts) == len(found.logits)
    torch.testing.assert_close(found.logits.sum(0), expected, atol=2e-5, rtol=1e-4)


@every_single
@torch.no_grad()
def test_each_part_adds_what_it_writes_with_the_norm_at_its_scale(config: Path) -> None:
    """The parts are the embedding, every head and MLP, and the bias."""
    model = single_network(config)
    net: Any = model.net
    ids, position = model.tokenizer.encode(TEXT), 5
    found = inspection.logit_attribution(model, TEXT, position)
    if isinstance(net, Bigram):
        assert found.parts == ["table"]
        return
    stages = residual(net, ids)
    written = {} if isinstance(net, AttentionLM) else {"embed": stages[0]}
    for i, layer in enumerate(layers_of(net)):
        attention = attention_of(layer)
        name = "attention" if attention is layer else f"blocks.{i}.attention"
        x = inputs(net, attention, ids)
        if isinstance(attention, MultiHeadAttention):
            for head in range(attention.heads):
                written[f"{name}, head {head}"] = head_output(attention, x, head)
        else:
            written[name] = attention(x[None])[0]
        if attention is not layer:
            mlp = layer.feed_forward
            written[f"blocks.{i}.feed_forward"] = mlp(inputs(net, mlp, ids)[None])[0]
    expected = {
        name: unembed_with_scale_of(net, x[position], stages[-1][position])
        for name, x in written.items()
    }
    if isinstance(net, AttentionLM):
        expected["bias"] = net.unembed.bias
    assert found.parts == list(expected)
    torch.testing.assert_close(
        found.logits, torch.stack([*expected.values()]), atol=1e-5, rtol=1e-3
    )


@torch.no_grad()
@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(32), nn.RMSNorm(32), nn.RMSNorm(32, elementwise_affine=False)]
)
def test_other_norms_and_a_bias_keep_the_sum(norm: nn.Module) -> None:
    """With all their parameters random; the biases are a part of their own."""
    model = model_named("gpt_cpu_classic")
    width = model.net.unembed[0].weight.numel()
    assert width == 32
    model.net.unembed = with_random_weights(nn.Sequential(norm, nn.Linear(width, 52)))
    found = inspection.logit_attribution(model, TEXT)
    expected = model.net(model.tokenizer.encode(TEXT)[None])[0, -1]
    assert found.parts[-1] == "bias"
    torch.testing.assert_close(found.logits.sum(0), expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_a_layer_that_is_not_the_sum_of_its_heads_and_its_mlp_is_one_part() -> None:
    model = model_named("gpt_cpu")
    first, second = layers_of(model.net)
    first.register_forward_hook(lambda _, x, y: (x[0] + y) / 2)
    second.attention.output = with_random_weights(nn.Linear(32, 32))  # a bias belongs to no head
    found = inspection.logit_attribution(model, TEXT)
    assert found.parts == ["embed", "blocks.0", "blocks.1"]
    expected = model.net(model.tokenizer.encode(TEXT)[None])[0, -1]
    torch.testing.assert_close(found.logits.sum(0), expected, atol=2e-5, rtol=1e-4)


def test_an_output_layer_that_is_not_a_norm_and_a_linear_layer_is_refused() -> None:
    model = model_named("gpt_cpu_classic")
    model.net.unembed.append(nn.Tanh())
    with pytest.raises(InputError, match="the output layer of GPT is not a norm and a linear"):
        inspection.logit_attribution(model, TEXT)
