"""Removes a part of a network and measures what that costs; shapes as in `hooks`.

To ablate a part is to replace its contribution by zeros: the output of a head, what a layer adds to
the residual stream, or the embedding of one position. The cost of a part is the rise of the mean
loss without it; it can be negative.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from lit_gpt_scratch.inspection.hooks import token_losses
from lit_gpt_scratch.inspection.parts import (
    attentions_in,
    count_heads,
    embedding,
    encode,
    item_at,
    layers_by_name,
)
from lit_gpt_scratch.training.module import LitCharLM


@contextmanager
def ablate_head(model: LitCharLM, layer: int, head: int) -> Iterator[None]:
    """Within this `with` block, zero one head. Attention without a module `output` is one head."""
    attention = item_at("layer", attentions_in(model, layers_by_name(model).values()), layer)
    heads = count_heads(attention)
    item_at("head", range(heads), head)

    def zero_head(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        by_head = inputs[0].view(*inputs[0].shape[:-1], heads, -1)
        return _zero_index(by_head, -2, head).flatten(-2)

    if hasattr(attention, "output"):
        handle = attention.output.register_forward_pre_hook(zero_head)
    else:
        handle = attention.register_forward_hook(lambda _, __, output: torch.zeros_like(output))
    with handle:
        yield


@contextmanager
def ablate_layer(model: LitCharLM, layer: int) -> Iterator[None]:
    """Within this `with` block, skip a block; of an `AttentionLM`, zero the attention's output."""
    module = item_at("layer", [*layers_by_name(model).values()], layer)
    block = hasattr(model.net, "blocks")
    with module.register_forward_hook(lambda _, x, y: x[0] if block else torch.zeros_like(y)):
        yield


@contextmanager
def ablate_position(model: LitCharLM, position: int) -> Iterator[None]:
    """Within this `with` block, zero the embedding of one position of the context."""
    item_at("position", range(model.context), position)
    with embedding(model).register_forward_hook(lambda _, __, x: _zero_index(x, 1, position)):
        yield


def head_costs(model: LitCharLM, text: str) -> Tensor:
    """Return the cost of each head, (L, H) nats per character (Michel et al. 2019)."""
    attentions = attentions_in(model, layers_by_name(model).values())
    places = [(i, head) for i, a in enumerate(attentions) for head in range(count_heads(a))]
    removals = (ablate_head(model, layer, head) for layer, head in places)
    return _costs(model, text, removals).view(len(attentions), -1)


def layer_costs(model: LitCharLM, text: str) -> Tensor:
    """Return the cost of each layer, (L,) nats per character."""
    return _costs(model, text, (ablate_layer(model, i) for i in range(len(layers_by_name(model)))))


def position_costs(model: LitCharLM, text: str) -> Tensor:
    """Return the cost of each character but the last, (T - 1,) nats (Zeiler and Fergus 2014)."""
    positions = range(len(encode(model, text, min_length=2)) - 1)
    return _costs(model, text, (ablate_position(model, position) for position in positions))


def _costs(model: LitCharLM, text: str, removals: Iterable[AbstractContextManager[None]]) -> Tensor:
    """Return how much each removal of a part raises the mean loss of a text."""
    losses = [token_losses(model, text).mean()]
    for removal in removals:
        with removal:
            losses.append(token_losses(model, text).mean())
    return torch.stack(losses[1:]) - losses[0]


def _zero_index(x: Tensor, dim: int, index: int) -> Tensor:
    return x.index_fill(dim, torch.tensor([index], device=x.device), 0.0)
