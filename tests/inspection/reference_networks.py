"""Every config's network computed by hand, part by part: what tests compare `hooks` with.

Shapes: T characters of a text, C channels, H heads, V alphabet size.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from laws import ALPHABET, CONFIGS, reference_weights, small, with_random_weights
from torch import Tensor, nn

from lit_gpt_scratch import inspection
from lit_gpt_scratch.models import GPT, AttentionLM, Bigram, Ensemble
from lit_gpt_scratch.models.attention import MeanAttention, MultiHeadAttention, SingleHeadAttention
from lit_gpt_scratch.training.module import LitCharLM

TEXT = "GoodLuck"  # as long as the context
LONG = "ThreeWindowsAndAPieceOfOne"
assert set(TEXT + LONG) <= set(ALPHABET)


def random_model(config: Path) -> LitCharLM:
    """Return a config's model in evaluation mode, with all parameters far from their start."""
    model = small(config).eval()
    model.net = with_random_weights(model.net)
    return model


def single_network(config: Path) -> LitCharLM:
    """Return a config's model, or one member if the config is an ensemble."""
    model = random_model(config)
    return inspection.member(model, 1) if hasattr(model.net, "members") else model


def model_named(stem: str) -> LitCharLM:
    return random_model(next(config for config in CONFIGS if config.stem == stem))


ENSEMBLES = [config for config in CONFIGS if hasattr(small(config).net, "members")]


def for_each(configs: list[Path]) -> Any:
    return pytest.mark.parametrize("config", configs, ids=lambda path: path.stem)


every_config = for_each(CONFIGS)
every_residual = for_each([c for c in CONFIGS if hasattr(single_network(c).net, "unembed")])
every_ensemble = for_each(ENSEMBLES)
every_single = for_each([config for config in CONFIGS if config not in ENSEMBLES])


def layers_of(net: Any) -> list[Any]:
    return [net.attention] if isinstance(net, AttentionLM) else list(net.blocks)


def attention_of(layer: Any) -> Any:
    return getattr(layer, "attention", layer)


def residual(net: Any, ids: Tensor, ablated: int | None = None) -> list[Tensor]:
    """Return the residual stream (T, C) after each stage; the position `ablated` enters as 0."""
    x = net.embed(ids[None])
    if ablated is not None:
        columns = [0 * x[:, t] if t == ablated else x[:, t] for t in range(len(ids))]
        x = torch.stack(columns, dim=1)
    stages = [x]
    for layer in layers_of(net):
        stages.append(layer(stages[-1]))
    return [stage[0] for stage in stages]


def unembed(net: Any, x: Tensor) -> Tensor:
    """Return logits (T, V) of a residual stream (T, C)."""
    if isinstance(net, AttentionLM):
        return x @ net.unembed.weight.T + net.unembed.bias
    if isinstance(net, GPT):
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / deviation * net.unembed[0].weight @ net.unembed[1].weight.T
    return net.unembed(x)


def logits(net: Any, ids: Tensor, ablated: int | None = None) -> Tensor:
    """Return logits (T, V)."""
    if isinstance(net, Ensemble):
        return torch.stack([logits(m, ids).softmax(-1) for m in net.members]).mean(0).log()
    if isinstance(net, Bigram):
        rows = [0 * net.table.weight[i] if t == ablated else net.table.weight[i]
                for t, i in enumerate(ids)]  # fmt: skip
        return torch.stack(rows)
    return unembed(net, residual(net, ids, ablated)[-1])


def losses(model: LitCharLM, text: str, net: nn.Module | None = None) -> Tensor:
    """Return the loss (T - 1,) of each character, given the characters before it in its window."""
    ids = model.tokenizer.encode(text)
    found = []
    for t in range(1, len(ids)):
        start = (t - 1) // model.context * model.context
        scores = logits(net or model.net, ids[start:t])[-1].double()
        found.append(scores.exp().sum().log() - scores[ids[t]])
    return torch.stack(found)


def attention_weights(attention: Any, x: Tensor) -> Tensor:
    """Return weights (H, T, T) of an input x (T, C), computed per head and per query."""
    if getattr(type(attention), "split", None) is MultiHeadAttention.split:
        query, key, _ = (x @ matrix.T for matrix in attention.qkv.weight.chunk(3))
        size = query.size(-1) // attention.heads
        pairs = zip(query.split(size, dim=-1), key.split(size, dim=-1), strict=True)
        return torch.stack([reference_weights(q, k) for q, k in pairs])
    if isinstance(attention, SingleHeadAttention):
        return reference_weights(x @ attention.query.weight.T, x @ attention.key.weight.T)[None]
    if isinstance(attention, MeanAttention):
        return reference_weights(0 * x, 0 * x)[None]
    return attention.weights(x[None])[0]  # other classes: their `weights` are tested elsewhere
