"""Costs and ablations in `hooks`, checked against copies of the network without the part.

Shapes: T characters of a text, C channels, H heads.
"""

import copy
from contextlib import ExitStack
from pathlib import Path

import torch
from reference_networks import (
    LONG,
    TEXT,
    attention_of,
    every_residual,
    every_single,
    layers_of,
    logits,
    losses,
    residual,
    single_network,
    unembed,
)
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt_scratch import inspection
from lit_gpt_scratch.models import AttentionLM
from lit_gpt_scratch.models.attention import MultiHeadAttention
from lit_gpt_scratch.training.module import LitCharLM


def rise_of_loss(model: LitCharLM, net: nn.Module) -> Tensor:
    return losses(model, LONG, net).mean() - losses(model, LONG).mean()


def without_attention(net: nn.Module, layer: int, head: int | None = None) -> nn.Module:
    """Return a copy with the weights that read a head's output, or every head's, set to zero."""
    net = copy.deepcopy(net)
    attention = attention_of(layers_of(net)[layer])
    if isinstance(attention, MultiHeadAttention):
        columns = attention.output.weight
        by_head = columns.view(len(columns), attention.heads, -1)  # (C, H, C / H)
        by_head[:, slice(None) if head is None else head] = 0
    else:
        attention.value.weight.zero_()
    return net


@every_residual
@torch.no_grad()
def test_head_costs_equal_zeroing_the_heads_columns_of_the_projection(config: Path) -> None:
    model = single_network(config)
    costs = inspection.head_costs(model, LONG)
    layers = layers_of(model.net)
    assert costs.shape == (len(layers), getattr(attention_of(layers[0]), "heads", 1))
    for layer, row in enumerate(costs):
        for head, cost in enumerate(row):
            expected = rise_of_loss(model, without_attention(model.net, layer, head))
            torch.testing.assert_close(cost.double(), expected, atol=3e-6, rtol=1e-3)
    assert costs.abs().max() > 1e-4


@every_residual
@torch.no_grad()
def test_layer_costs_equal_deleting_the_layer(config: Path) -> None:
    model = single_network(config)
    costs = inspection.layer_costs(model, LONG)
    assert len(costs) == len(layers_of(model.net))
    for layer, cost in enumerate(costs):
        if isinstance(model.net, AttentionLM):
            net = without_attention(model.net, layer)
        else:
            net = copy.deepcopy(model.net)
            del net.blocks[layer]
        torch.testing.assert_close(cost.double(), rise_of_loss(model, net), atol=3e-6, rtol=1e-3)
    assert costs.abs().max() > 1e-4


@every_single
@torch.no_grad()
def test_position_costs_equal_zeroing_the_embedding_of_the_position(config: Path) -> None:
    """The last character has no cost, because nothing is predicted from it."""
    model = single_network(config)
    costs = inspection.position_costs(model, TEXT)
    ids = model.tokenizer.encode(TEXT)
    assert len(costs) == len(TEXT) - 1
    for position, cost in enumerate(costs):
        loss = F.cross_entropy(logits(model.net, ids[:-1], ablated=position).double(), ids[1:])
        expected = loss - losses(model, TEXT).mean()
        torch.testing.assert_close(cost.double(), expected, atol=3e-6, rtol=1e-3)


@every_residual
@torch.no_grad()
def test_ablations_can_be_combined_and_are_undone(config: Path) -> None:
    """Without any layer, the prediction comes from the embedding alone."""
    model = single_network(config)
    net, ids = model.net, model.tokenizer.encode(TEXT)
    before, embedded = net(ids[None]), residual(net, ids)[0] * (not isinstance(net, AttentionLM))
    with ExitStack() as ablations:
        for layer in range(len(layers_of(net))):
            ablations.enter_context(inspection.ablate_layer(model, layer))
        torch.testing.assert_close(net(ids[None])[0], unembed(net, embedded), atol=1e-4, rtol=1e-4)
    assert torch.equal(net(ids[None]), before)
