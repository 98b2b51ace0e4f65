"""Finds the parts of any network and records what goes through them; for the files of this folder.

Shapes: B texts, T characters of a text, C channels, V alphabet size, L layers, S = L + 1 stages.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models.attention import has_weights
from lit_gpt_scratch.private_api import uncompiled
from lit_gpt_scratch.training.module import LitCharLM


class Record(NamedTuple):
    """Input and output of each recorded module, by name, and the network's logits (B, T, V)."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    logits: Tensor


def encode(model: LitCharLM, text: str, min_length: int = 1, must_fit: bool = True) -> Tensor:
    """Return ids (T,) of a text; with `must_fit`, refuse one longer than the context."""
    if len(text) < min_length or (must_fit and len(text) > model.context):
        most = f" and at most {model.context}, the model's context" if must_fit else ""
        raise InputError(f"the text has {len(text)} characters: give at least {min_length}{most}.")
    return model.tokenizer.encode(text).to(model.device)


def item_at(name: str, items: Sequence[Any], index: int) -> Any:
    """Return an item, counted from 0; `name` is what the error says is out of range."""
    if not 0 <= index < len(items):
        raise InputError(f"{name} is {index}: it must be from 0 to {len(items) - 1}.")
    return items[index]


@contextmanager
def evaluation_mode(model: LitCharLM) -> Iterator[Any]:
    """Yield the network in evaluation mode, without gradients, uncompiled; then restore it."""
    training = [module for module in model.net.modules() if module.training]
    model.net.eval()
    try:
        # Hooks would make torch.compile compile a block again for every text length.
        with torch.no_grad(), uncompiled():
            yield model.net
    finally:
        for module in training:
            module.training = True


def record(model: LitCharLM, ids: Tensor, modules: Mapping[str, nn.Module]) -> Record:
    """Run ids (B, T) through the network, and record some of its modules."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(_: nn.Module, x: tuple[Tensor, ...], y: Tensor) -> None:
            inputs[name], outputs[name] = x[0], y

        return keep

    with evaluation_mode(model) as net, ExitStack() as hooks:
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_hook(hook(name)))
        logits = net(ids).float()
    return Record(inputs, outputs, logits)


def forward(model: LitCharLM, text: str) -> tuple[list[str], Tensor, Tensor]:
    """Return names of the stages, the residual stream (S, T, C), and log-probabilities (T, V).

    S is 0 if the network has no residual stream of its own.
    """
    stages = stages_by_name(model)
    found = record(model, encode(model, text)[None], stages)
    logits = found.logits[0]
    residual = [found.outputs[name][0] for name in stages]
    stream = torch.stack(residual) if stages else logits.new_empty(0, *logits.shape)
    return list(stages), stream, logits.log_softmax(-1)


def embedding(model: LitCharLM) -> Any:
    """Return the module that maps ids to vectors; for a bigram, its table of logits."""
    for name in ("embed", "table"):
        if hasattr(model.net, name):
            return getattr(model.net, name)
    raise missing(model, "embedding")


def layers_by_name(model: LitCharLM) -> dict[str, nn.Module]:
    """Return the layers, in order: the blocks, or the one attention of `AttentionLM`."""
    net: Any = model.net
    if hasattr(net, "blocks"):
        return {f"blocks.{i}": block for i, block in enumerate(net.blocks)}
    if hasattr(net, "attention"):
        return {"attention": net.attention}
    raise missing(model, "layers")


def stages_by_name(model: LitCharLM) -> dict[str, nn.Module]:
    """Return the embedding and the layers (S); none if there is no residual stream."""
    if not hasattr(model.net, "unembed"):
        return {}
    return {"embed": embedding(model), **layers_by_name(model)}


def parts_by_name(model: LitCharLM) -> dict[str, nn.Module]:
    """Return the embedding, and of each layer the attention, the MLP and the layer, in order."""
    stages = stages_by_name(model) or {"table": embedding(model)}
    parts: dict[str, nn.Module] = {}
    for name, stage in stages.items():
        names = {child: f"{name}.{child}" for child in ("attention", "feed_forward")}
        parts |= {names[c]: part for c, part in stage.named_children() if c in names}
        parts[name] = stage
    return parts


def attentions_in(model: LitCharLM, parts: Iterable[nn.Module]) -> list[Any]:
    """Return the attention modules in parts of the network."""
    found = [m for part in parts for m in part.modules() if has_weights(m)]
    if not found:
        raise missing(model, "attention with a method `weights`")
    return found


@contextmanager
def recorded_weights(net: nn.Module) -> Iterator[list[tuple[str, Tensor]]]:
    """In this `with` block, list the name and the weights (B, H, T, T) of each attention that runs.

    The names are those of the modules in the network.
    """
    names = {module: name for name, module in net.named_modules() if has_weights(module)}
    found: list[tuple[str, Tensor]] = []

    def record_weights(module: Any, inputs: tuple[Tensor, ...]) -> None:
        found.append((names[module], module.weights(inputs[0])))

    with ExitStack() as hooks:
        for module in names:
            hooks.enter_context(module.register_forward_pre_hook(record_weights))
        yield found


def count_heads(attention: Any) -> int:
    """Return the number of heads; attention without an output projection is one head."""
    return int(attention.heads) if hasattr(attention, "output") else 1


def output_layer(model: LitCharLM) -> tuple[nn.Linear, Any]:
    """Return the linear layer to logits, and the norm before it if that is a module."""
    if not hasattr(model.net, "unembed"):
        raise missing(model, "layer from a residual stream to logits")
    unembed: Any = model.net.unembed
    modules = [*unembed.modules()]
    norms = [m for m in modules if isinstance(m, nn.LayerNorm | nn.RMSNorm)]
    return next(m for m in modules if isinstance(m, nn.Linear)), next(iter(norms), None)


def gain(norm: Any) -> Tensor | int:
    """Return what a norm multiplies each channel by, (C,); 1 if it has no gain, or is None."""
    weight = getattr(norm, "weight", None)
    return 1 if weight is None else weight.detach()


def missing(model: LitCharLM, part: str) -> InputError:
    """Return the error for a part that the network does not have."""
    hint = " of its own: use one of its members, inspection.member(model, 0)"
    where = hint if hasattr(model.net, "members") else ""
    return InputError(f"{type(model.net).__name__} has no {part}{where}.")
