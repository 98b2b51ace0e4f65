"""Looking inside a trained model, from outside: what a notebook calls, for every rung.

Nothing here changes a network: hooks are put on, read, and taken off again, and in whatever mode it
is, it is asked in evaluation mode, without gradients. What a network has not, and a text that does
not fit it, raises `InputError`. `plots.py` draws what comes out.

The stream is what a network hands from layer to layer; its stages are the embedding, and what each
layer makes of it. To ablate a part is to put zeros in place of what it adds: a head gathers
nothing, a layer leaves the stream as it is, a character enters as nothing. The cost is the rise of
the mean loss; below zero, the network does better without.

Shapes: T time, C channels, V alphabet size, L layers, H heads, S stages (S = L + 1).
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt_scratch.data.windows import eval_batch_size
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.training.module import LitCharLM

SIGNS = {"\n": "⏎", " ": "␣", "\t": "⇥", "\r": "↵"}  # for characters that show nothing
Item = TypeVar("Item")


class LayerAttention(NamedTuple):
    """The attention of one layer: its module's name in the network, and weights (H, T, T)."""

    layer: str
    weights: Tensor


class Lens(NamedTuple):
    """What each stage of the stream would say comes next: names, and probabilities (S, T, V)."""

    stages: list[str]
    probabilities: Tensor


class Trace(NamedTuple):
    """What a changed character changes, at each stage of the stream and in the prediction.

    Attributes:
        stages: Names; S is 0 where a network has no stream of its own.
        stream: (S, T), the length of the change over the stream's length before it.
        prediction: (T,), in nats, how far what is expected next has moved from what it was
            (Kullback-Leibler divergence).
    """

    stages: list[str]
    stream: Tensor
    prediction: Tensor


def visible(text: str) -> str:
    """A text of the same length whose every character is something to see, and to draw alone."""
    return "".join(SIGNS.get(c, c if c.isprintable() else "�") for c in text)


def member(model: LitCharLM, index: int) -> LitCharLM:
    """One network of an ensemble, counted from 0, as a model of its own: a copy."""
    alone = copy.deepcopy(model)
    if not hasattr(alone.net, "members"):
        raise InputError(f"{type(model.net).__name__} has no members: it is one network already.")
    members: Any = alone.net.members
    alone.net = _pick("member", members, index)
    return alone


def attention(model: LitCharLM, text: str) -> list[LayerAttention]:
    """How much each character of a text reads from each one before it, in every layer and head.

    Args:
        model: Of any rung that has attention; of an ensemble, all members' layers are shown.
        text: T characters, at most the context.

    Returns:
        For each layer, in the order they run, weights (H, T, T): row reads column, rows sum to 1.
    """
    ids = _encode(model, text)
    names = {m: name for name, m in model.net.named_modules() if hasattr(m, "weights")}
    if not names:
        raise _lacks(model, "attention with weights to look at")
    found: list[LayerAttention] = []

    def look(module: Any, inputs: tuple[Tensor, ...]) -> None:
        found.append(LayerAttention(names[module], module.weights(inputs[0])[0]))

    with _looking(model) as net, ExitStack() as hooks:
        for module in names:
            hooks.enter_context(module.register_forward_pre_hook(look))
        net(ids[None])
    return found


def next_characters(model: LitCharLM, text: str) -> Tensor:
    """Probabilities (T, V) of what follows each character of a text, at most the context long."""
    return _read(model, text)[2].exp()


def surprise(model: LitCharLM, text: str) -> Tensor:
    """The loss in nats, (T - 1,), of each character of a text but the first.

    A text longer than the context is read in windows side by side, as in validation: the mean is
    the loss that `validate` reports of such a text.
    """
    ids = _encode(model, text, least=2, whole=False)
    inputs, targets = ids[:-1], ids[1:]
    length = min(len(inputs), model.context)
    # What fills up the last window comes after all that counts, and so changes none of it.
    windows = F.pad(inputs, (0, -len(inputs) % length)).view(-1, length)
    with _looking(model) as net:
        batches = torch.split(windows, eval_batch_size(length, len(model.tokenizer)))
        ends = F.pad(targets, (0, -len(targets) % length)).view_as(windows)
        # Batch by batch: the logits of a long text and a large alphabet would not fit in memory.
        losses = [
            F.cross_entropy(net(batch).float().flatten(0, 1), end.flatten(), reduction="none")
            for batch, end in zip(batches, torch.split(ends, len(batches[0])), strict=True)
        ]
    return torch.cat(losses)[: len(targets)]


def logit_lens(model: LitCharLM, text: str) -> Lens:
    """What the unembedding would say comes next, if the stream ended at each of its stages.

    The last is what the network says (nostalgebraist 2020, interpreting GPT: the logit lens).
    """
    _layers(model)  # or there is nothing to read
    stages, stream, _ = _read(model, text)
    with _looking(model) as net:
        return Lens(stages, net.unembed(stream).float().softmax(-1))


def trace(model: LitCharLM, text: str, position: int, character: str) -> Trace:
    """What changes, and where, when the character at a position becomes another.

    The corrupted run of causal tracing (Meng et al. 2022). What stands before the position is
    exactly as it was. The text is at most the context long.
    """
    stages, before, expected = _read(model, text)
    old = _pick("position", text, position)
    if len(character) != 1 or character == old:
        raise InputError(f"character is {character!r}: give a single one, other than {old!r}.")
    # Not as a batch of two: only apart is what stays the same the same to the last bit.
    _, after, found = _read(model, text[:position] + character + text[position + 1 :])
    divergence = F.kl_div(found, expected, reduction="none", log_target=True).sum(-1)
    return Trace(stages, (after - before).norm(dim=-1) / before.norm(dim=-1), divergence)


def embeddings(model: LitCharLM) -> Tensor:
    """Each character's row (V, C) in the embedding; in a bigram's table, (V, V)."""
    embed = _embedding(model)
    return getattr(embed, "character", embed).weight.detach().clone()


def similarity(model: LitCharLM) -> Tensor:
    """Cosines (V, V) of the angles between the characters' embeddings, from -1 to 1."""
    directions = F.normalize(embeddings(model), dim=-1)
    return directions @ directions.T


@contextmanager
def without_head(model: LitCharLM, layer: int, head: int) -> Iterator[None]:
    """While this is open, a head gathers nothing. Attention without an `output` is one head."""
    attention = _pick("layer", _attentions(model), layer)
    heads = _heads(attention)
    _pick("head", range(heads), head)

    def silence(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        by_head = inputs[0].view(*inputs[0].shape[:-1], heads, -1)
        return _erase(by_head, -2, head).flatten(-2)

    if hasattr(attention, "output"):
        handle = attention.output.register_forward_pre_hook(silence)
    else:
        handle = attention.register_forward_hook(lambda _, __, read: torch.zeros_like(read))
    with handle:
        yield


@contextmanager
def without_layer(model: LitCharLM, layer: int) -> Iterator[None]:
    """While this is open, a block hands its input on as it is, and a lone attention zeros."""
    module = _pick("layer", [*_layers(model).values()], layer)
    block = hasattr(model.net, "blocks")
    with module.register_forward_hook(lambda _, x, y: x[0] if block else torch.zeros_like(y)):
        yield


@contextmanager
def without_position(model: LitCharLM, position: int) -> Iterator[None]:
    """While this is open, what stands at a position of the context enters as zeros."""
    _pick("position", range(model.context), position)
    with _embedding(model).register_forward_hook(lambda _, __, x: _erase(x, 1, position)):
        yield


def head_costs(model: LitCharLM, text: str) -> Tensor:
    """What it costs to lose each head, (L, H) nats per character (Michel et al. 2019).

    The text may be longer than the context.
    """
    attentions = _attentions(model)
    places = [(i, head) for i, a in enumerate(attentions) for head in range(_heads(a))]
    each = (without_head(model, layer, head) for layer, head in places)
    return _costs(model, text, each).view(len(attentions), -1)


def layer_costs(model: LitCharLM, text: str) -> Tensor:
    """What it costs to lose each layer, (L,) nats per character. The text may be long."""
    layers = range(len(_layers(model)))
    return _costs(model, text, (without_layer(model, layer) for layer in layers))


def position_costs(model: LitCharLM, text: str) -> Tensor:
    """What it costs to lose each character but the last, (T - 1,) nats per character.

    The text is at most the context long (occlusion: Zeiler and Fergus 2014).
    """
    positions = range(len(_encode(model, text, least=2)) - 1)
    return _costs(model, text, (without_position(model, position) for position in positions))


def _costs(model: LitCharLM, text: str, each: Iterable[AbstractContextManager[None]]) -> Tensor:
    """What each ablation adds to the mean loss of a text."""
    losses = [surprise(model, text).mean()]
    for ablation in each:
        with ablation:
            losses.append(surprise(model, text).mean())
    return torch.stack(losses[1:]) - losses[0]


@contextmanager
def _looking(model: LitCharLM) -> Iterator[Any]:
    """The network in evaluation mode, without gradients and not compiled; then as it was."""
    training = [module for module in model.net.modules() if module.training]
    model.net.eval()
    try:
        # A compiled block would be compiled anew, with the hooks in it.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield model.net
    finally:
        for module in training:
            module.training = True


def _read(model: LitCharLM, text: str) -> tuple[list[str], Tensor, Tensor]:
    """The stages' names, the stream (S, T, C) at each, and log-probabilities (T, V)."""
    ids = _encode(model, text)
    has_stream = hasattr(model.net, "unembed")
    stages = {"embed": _embedding(model), **_layers(model)} if has_stream else {}
    stream: list[Tensor] = []

    with _looking(model) as net, ExitStack() as hooks:
        for module in stages.values():
            hooks.enter_context(module.register_forward_hook(lambda _, __, x: stream.append(x[0])))
        logits = net(ids[None])[0].float()
    stacked = torch.stack(stream) if stream else logits.new_empty(0, *logits.shape)
    return list(stages), stacked, logits.log_softmax(-1)


def _encode(model: LitCharLM, text: str, least: int = 1, whole: bool = True) -> Tensor:
    """Ids (T,) of a text, which must fit into the context where it is read as a whole."""
    if len(text) < least or (whole and len(text) > model.context):
        most = f" and at most {model.context}, the model's context" if whole else ""
        raise InputError(f"the text has {len(text)} characters: give at least {least}{most}.")
    return model.tokenizer.encode(text).to(model.device)


def _layers(model: LitCharLM) -> dict[str, nn.Module]:
    """What the stream goes through, by name, in order."""
    net: Any = model.net
    if hasattr(net, "blocks"):
        return {f"blocks.{i}": block for i, block in enumerate(net.blocks)}
    if hasattr(net, "attention"):
        return {"attention": net.attention}
    raise _lacks(model, "layers")


def _attentions(model: LitCharLM) -> list[Any]:
    """The attention in each layer, which may be one itself."""
    layers = _layers(model).values()
    found = [m for layer in layers for m in layer.modules() if hasattr(m, "weights")]
    if not found:
        raise _lacks(model, "attention with weights to look at")
    return found


def _heads(attention: Any) -> int:
    """How many heads stand side by side before the projection that mixes them, if there is one."""
    return int(attention.heads) if hasattr(attention, "output") else 1


def _embedding(model: LitCharLM) -> Any:
    """What turns characters into vectors; a bigram's table, which makes logits of them at once."""
    for name in ("embed", "table"):
        if hasattr(model.net, name):
            return getattr(model.net, name)
    raise _lacks(model, "embedding")


def _erase(x: Tensor, dim: int, index: int) -> Tensor:
    return x.index_fill(dim, torch.tensor([index], device=x.device), 0.0)


def _lacks(model: LitCharLM, part: str) -> InputError:
    own = " of its own: ask one of its members, explore.member(model, 0)"
    where = own if hasattr(model.net, "members") else ""
    return InputError(f"{type(model.net).__name__} has no {part}{where}.")


def _pick(name: str, items: Sequence[Item], index: int) -> Item:
    if not 0 <= index < len(items):
        raise InputError(f"{name} is {index}: it must be from 0 to {len(items) - 1}.")
    return items[index]
