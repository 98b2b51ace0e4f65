"""Splits logits into what each part of a network adds to them (direct logit attribution).

Everything that a network adds to the residual stream reaches the logits through a norm and a linear
layer. With the norm's scale kept at its value for this text, both are linear, so the logits are a
sum over the parts (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"). A part
can also act through later parts that read its output; that is counted as theirs.

Shapes: P parts, V alphabet size, C channels, H heads, D head size.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.inspection.parts import (
    encode,
    evaluation_mode,
    gain,
    item_at,
    layers_by_name,
    output_layer,
    parts_by_name,
    record,
)
from lit_gpt_scratch.training.module import LitCharLM

ROUNDING = 1e-4  # of 32 bits, in sums of vectors


class Attribution(NamedTuple):
    """Names of the parts, and what each adds to the logit of every character, (P, V).

    The sum over the parts is the network's logits (V,), up to rounding.
    """

    parts: list[str]
    logits: Tensor


def logit_attribution(model: LitCharLM, text: str, position: int | None = None) -> Attribution:
    """Split the logits after `position` (default: the last one) into a sum over parts.

    Parts are the embedding, the heads and the MLP of each layer, and the bias of the output layer.
    A layer that is not the sum of its heads and its MLP is one part. Raises `InputError` also for
    an output layer that is not a norm and a linear layer.
    """
    net: Any = model.net
    ids = encode(model, text)[None]
    parts: dict[str, Any] = parts_by_name(model)
    position = len(text) - 1 if position is None else position
    item_at("position", text, position)
    if "table" in parts:  # a bigram is one part, whose output is the logits
        return Attribution(["table"], record(model, ids, {}).logits[0, position, None])
    linear, norm = output_layer(model)
    modules: dict[str, Any] = {**parts, "unembed": net.unembed, "last": linear}
    modules |= {f"{name}.output": part.output for name, part in parts.items() if _has_heads(part)}
    run = record(model, ids, modules)
    # From here on, at one position.
    inputs, outputs = (
        {name: x[0, position] for name, x in tensors.items()}
        for tensors in (run.inputs, run.outputs)
    )
    added: dict[str, Tensor] = {}
    is_stream = hasattr(net, "blocks")  # in an AttentionLM, attention replaces the embedding
    if is_stream:
        added["embed"] = outputs["embed"]
    for layer in layers_by_name(model):
        inside = [name for name in parts if name.startswith(f"{layer}.")] or [layer]
        pieces = _split(inside, parts, inputs, outputs)
        whole = outputs[layer] - (inputs[layer] if is_stream else 0)
        added |= pieces if _is_sum(pieces.values(), whole) else {layer: whole}
    vectors = _norm(torch.stack([*added.values()]), inputs["unembed"], inputs["last"], norm)
    with evaluation_mode(model):
        bias = net.unembed(torch.zeros_like(inputs["unembed"]))
    added |= zip(added, vectors @ linear.weight.detach().T, strict=True)
    if bias.any():
        added["bias"] = bias
    if not _is_sum(added.values(), run.logits[0, position]):
        raise InputError(
            f"the output layer of {type(net).__name__} is not a norm and a linear layer: its "
            "logits are not a sum over the parts of the network."
        )
    return Attribution([*added], torch.stack([*added.values()]))


def _has_heads(part: Any) -> bool:
    return hasattr(part, "heads") and isinstance(getattr(part, "output", None), nn.Linear)


def _split(
    names: Iterable[str], parts: Mapping[str, Any],
    inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor],
) -> dict[str, Tensor]:  # fmt: skip
    """Return the vectors (C,) that parts of a layer write, of an attention one for each head."""
    vectors = {}
    for name in names:
        if not _has_heads(parts[name]):
            vectors[name] = outputs[name]
            continue
        heads = (parts[name].heads, -1)
        head_outputs = inputs[f"{name}.output"].view(heads)  # (H, D)
        matrix = parts[name].output.weight.detach()
        by_head = torch.einsum("hd,chd->hc", head_outputs, matrix.view(len(matrix), *heads))
        vectors |= {f"{name}, head {i}": vector for i, vector in enumerate(by_head)}
    return vectors


def _norm(vectors: Tensor, x: Tensor, normed: Tensor, norm: Any) -> Tensor:
    """Apply to vectors (P, C) what a norm did to x (C,), with its scale for x, but not its bias.

    `norm` is None for a norm without a module of its own, or if there is none.
    """
    rows = torch.cat([vectors, x[None]])
    if isinstance(norm, nn.LayerNorm):
        rows = rows - rows.mean(-1, keepdim=True)
    rows = rows * gain(norm)
    if getattr(norm, "bias", None) is not None:
        normed = normed - norm.bias.detach()
    return rows[:-1] * (normed.norm() / rows[-1].norm())


def _is_sum(parts: Iterable[Tensor], whole: Tensor) -> bool:
    """Return whether parts add up to the whole, up to rounding."""
    return bool((sum(parts) - whole).norm() <= ROUNDING * (1 + whole.norm()))
