"""Looks into any trained network through hooks from outside; for notebooks and for training.

Here is what a network computes for a text: attention, predictions, losses, the logit lens. Files
beside this one change what it computes (`ablation`, `patching`), split a logit into what each part
adds to it (`attribution`), and compare characters (`embeddings`).

All functions read a `LitCharLM` in evaluation mode, without gradients, and leave it unchanged: they
remove their hooks and restore its mode. They raise `InputError` for a text that does not fit and
for a part that the network does not have. A text is at most the context long; only `token_losses`,
`head_costs` and `layer_costs` take longer ones. `plots` draws the results.

The residual stream is the tensor that a network passes from layer to layer. Its stages are the
embedding and the output of each layer.

Shapes: T characters of a text, C channels, V alphabet size, L layers, H heads, S = L + 1 stages.
"""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt_scratch.data.windows import eval_batch_size
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.inspection.parts import (
    attentions_in,
    encode,
    evaluation_mode,
    forward,
    item_at,
    layers_by_name,
    recorded_weights,
)
from lit_gpt_scratch.training.module import LitCharLM


class LayerAttention(NamedTuple):
    """Attention of one layer: the name of its module in the network, and weights (H, T, T)."""

    layer: str
    weights: Tensor


class Lens(NamedTuple):
    """Names of the stages, and next-character probabilities (S, T, V) read from each stage."""

    stages: list[str]
    probabilities: Tensor


def member(model: LitCharLM, index: int) -> LitCharLM:
    """Return a copy of one network of an ensemble, counted from 0, as a model of its own."""
    if not hasattr(model.net, "members"):
        raise InputError(f"{type(model.net).__name__} has no members: it is one network already.")
    alone: Any = copy.deepcopy(model)
    alone.net = item_at("member", alone.net.members, index)
    return alone


def attention(model: LitCharLM, text: str) -> list[LayerAttention]:
    """Return the attention weights of every layer and head, in the order in which layers run.

    In weights (H, T, T), row t holds how much character t attends to each character; rows sum to 1
    unless the class says `weights_sum_to_1 = False`.
    For an ensemble, the layers of all members are returned.
    """
    ids = encode(model, text)
    attentions_in(model, [model.net])  # refuses a network without attention
    with evaluation_mode(model) as net, recorded_weights(net) as found:
        net(ids[None])
    return [LayerAttention(name, weights[0]) for name, weights in found]


def next_characters(model: LitCharLM, text: str) -> Tensor:
    """Return next-character probabilities (T, V) after each character of a text."""
    return forward(model, text)[2].exp()


def token_losses(model: LitCharLM, text: str) -> Tensor:
    """Return the loss in nats, (T - 1,), of each character of a text except the first.

    A text longer than the context is split into windows side by side, as in validation: the mean
    equals the loss that `validate` reports for this text.
    """
    ids = encode(model, text, min_length=2, must_fit=False)
    inputs, targets = ids[:-1], ids[1:]
    length = min(len(inputs), model.context)
    # Padding follows the last real character, so it cannot change the losses of a causal network.
    padding = (0, -len(inputs) % length)
    windows, ends = (F.pad(part, padding).view(-1, length) for part in (inputs, targets))
    count = eval_batch_size(length, len(model.tokenizer))
    # In batches: all logits of a long text with a large alphabet would not fit in memory.
    batches = zip(torch.split(windows, count), torch.split(ends, count), strict=True)
    with evaluation_mode(model) as net:
        losses = [
            F.cross_entropy(net(batch).float().flatten(0, 1), end.flatten(), reduction="none")
            for batch, end in batches
        ]
    return torch.cat(losses)[: len(targets)]


def logit_lens(model: LitCharLM, text: str) -> Lens:
    """Unembed every stage of the residual stream (logit lens: nostalgebraist 2020)."""
    layers_by_name(model)  # raises InputError if there are none
    stages, residual, _ = forward(model, text)
    with evaluation_mode(model) as net:
        return Lens(stages, net.unembed(residual).float().softmax(-1))
