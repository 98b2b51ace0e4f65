"""Looks into any trained network through hooks from outside; for notebooks and for training.

All functions read a `LitCharLM` in evaluation mode, without gradients, and leave it unchanged: they
remove their hooks and restore its mode. They raise `InputError` for a text that does not fit and
for a part that the network does not have. A text is at most the context long; only `token_losses`,
`head_costs` and `layer_costs` take longer ones. `plots` draws the results.

The residual stream is the tensor that a network passes from layer to layer. Its stages are the
embedding and the output of each layer. To ablate a part is to replace its contribution by zeros:
the output of a head, what a layer adds to the residual stream, or the embedding of one position.
The cost of a part is the rise of the mean loss without it; it can be negative.

Shapes: T characters of a text, C channels, V alphabet size, L layers, H heads, S = L + 1 stages.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt_scratch.data.windows import eval_batch_size
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.training.module import LitCharLM


class LayerAttention(NamedTuple):
    """Attention of one layer: the name of its module in the network, and weights (H, T, T)."""

    layer: str
    weights: Tensor


class Lens(NamedTuple):
    """Names of the stages, and next-character probabilities (S, T, V) read from each stage."""

    stages: list[str]
    probabilities: Tensor


class Trace(NamedTuple):
    """Effect of one changed character. S is 0 if the network has no residual stream of its own."""

    stages: list[str]
    residual: Tensor  # (S, T): norm of the change, divided by the norm before it
    prediction: Tensor  # (T,): KL divergence in nats of the next-character probabilities


def member(model: LitCharLM, index: int) -> LitCharLM:
    """Return a copy of one network of an ensemble, counted from 0, as a model of its own."""
    if not hasattr(model.net, "members"):
        raise InputError(f"{type(model.net).__name__} has no members: it is one network already.")
    alone: Any = copy.deepcopy(model)
    alone.net = _item_at("member", alone.net.members, index)
    return alone


def attention(model: LitCharLM, text: str) -> list[LayerAttention]:
    """Return the attention weights of every layer and head, in the order in which layers run.

    In weights (H, T, T), row t holds how much character t attends to each character; rows sum to 1.
    For an ensemble, the layers of all members are returned.
    """
    ids = _encode(model, text)
    names = {module: name for name, module in model.net.named_modules()}
    found: list[LayerAttention] = []

    def record_attention(module: Any, inputs: tuple[Tensor, ...]) -> None:
        found.append(LayerAttention(names[module], module.weights(inputs[0])[0]))

    with _evaluation_mode(model) as net, ExitStack() as hooks:
        for module in _attentions(model, [net]):
            hooks.enter_context(module.register_forward_pre_hook(record_attention))
        net(ids[None])
    return found


def next_characters(model: LitCharLM, text: str) -> Tensor:
    """Return next-character probabilities (T, V) after each character of a text."""
    return _forward(model, text)[2].exp()


def token_losses(model: LitCharLM, text: str) -> Tensor:
    """Return the loss in nats, (T - 1,), of each character of a text except the first.

    A text longer than the context is split into windows side by side, as in validation: the mean
    equals the loss that `validate` reports for this text.
    """
    ids = _encode(model, text, min_length=2, must_fit=False)
    inputs, targets = ids[:-1], ids[1:]
    length = min(len(inputs), model.context)
    # Padding follows the last real character, so it cannot change the losses of a causal network.
    padding = (0, -len(inputs) % length)
    windows, ends = (F.pad(part, padding).view(-1, length) for part in (inputs, targets))
    count = eval_batch_size(length, len(model.tokenizer))
    # In batches: all logits of a long text with a large alphabet would not fit in memory.
    batches = zip(torch.split(windows, count), torch.split(ends, count), strict=True)
    with _evaluation_mode(model) as net:
        losses = [
            F.cross_entropy(net(batch).float().flatten(0, 1), end.flatten(), reduction="none")
            for batch, end in batches
        ]
    return torch.cat(losses)[: len(targets)]


def logit_lens(model: LitCharLM, text: str) -> Lens:
    """Unembed every stage of the residual stream (logit lens: nostalgebraist 2020)."""
    _layers(model)  # raises InputError if there are none
    stages, residual, _ = _forward(model, text)
    with _evaluation_mode(model) as net:
        return Lens(stages, net.unembed(residual).float().softmax(-1))


def trace(model: LitCharLM, text: str, position: int, character: str) -> Trace:
    """Replace the character at a position, and measure the change at each stage and position.

    This is the corrupted run of causal tracing (Meng et al. 2022). Positions before the replaced
    one do not change at all.
    """
    stages, before, expected = _forward(model, text)
    old = _item_at("position", text, position)
    if len(character) != 1 or character == old:
        raise InputError(f"character is {character!r}: give one character other than {old!r}.")
    # Two separate passes, because rounding may differ between rows of one batch.
    _, after, changed = _forward(model, text[:position] + character + text[position + 1 :])
    divergence = F.kl_div(changed, expected, reduction="none", log_target=True).sum(-1)
    return Trace(stages, (after - before).norm(dim=-1) / before.norm(dim=-1), divergence)


def embeddings(model: LitCharLM) -> Tensor:
    """Return a copy of the characters' embedding rows (V, C); for a bigram, its table (V, V)."""
    embed = _embedding(model)
    return getattr(embed, "character", embed).weight.detach().clone()


def similarity(model: LitCharLM) -> Tensor:
    """Return the cosine similarity (V, V) of each pair of character embeddings, from -1 to 1."""
    directions = F.normalize(embeddings(model), dim=-1)
    return directions @ directions.T


@contextmanager
def ablate_head(model: LitCharLM, layer: int, head: int) -> Iterator[None]:
    """Within this `with` block, zero one head. Attention without a module `output` is one head."""
    attention = _item_at("layer", _attentions(model, _layers(model).values()), layer)
    heads = _count_heads(attention)
    _item_at("head", range(heads), head)

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
    module = _item_at("layer", [*_layers(model).values()], layer)
    block = hasattr(model.net, "blocks")
    with module.register_forward_hook(lambda _, x, y: x[0] if block else torch.zeros_like(y)):
        yield


@contextmanager
def ablate_position(model: LitCharLM, position: int) -> Iterator[None]:
    """Within this `with` block, zero the embedding of one position of the context."""
    _item_at("position", range(model.context), position)
    with _embedding(model).register_forward_hook(lambda _, __, x: _zero_index(x, 1, position)):
        yield


def head_costs(model: LitCharLM, text: str) -> Tensor:
    """Return the cost of each head, (L, H) nats per character (Michel et al. 2019)."""
    attentions = _attentions(model, _layers(model).values())
    places = [(i, head) for i, a in enumerate(attentions) for head in range(_count_heads(a))]
    removals = (ablate_head(model, layer, head) for layer, head in places)
    return _costs(model, text, removals).view(len(attentions), -1)


def layer_costs(model: LitCharLM, text: str) -> Tensor:
    """Return the cost of each layer, (L,) nats per character."""
    return _costs(model, text, (ablate_layer(model, i) for i in range(len(_layers(model)))))


def position_costs(model: LitCharLM, text: str) -> Tensor:
    """Return the cost of each character but the last, (T - 1,) nats (Zeiler and Fergus 2014)."""
    positions = range(len(_encode(model, text, min_length=2)) - 1)
    return _costs(model, text, (ablate_position(model, position) for position in positions))


def _costs(model: LitCharLM, text: str, removals: Iterable[AbstractContextManager[None]]) -> Tensor:
    """Return how much each removal of a part raises the mean loss of a text."""
    losses = [token_losses(model, text).mean()]
    for removal in removals:
        with removal:
            losses.append(token_losses(model, text).mean())
    return torch.stack(losses[1:]) - losses[0]


@contextmanager
def _evaluation_mode(model: LitCharLM) -> Iterator[Any]:
    """Yield the network in evaluation mode, without gradients, uncompiled; then restore it."""
    training = [module for module in model.net.modules() if module.training]
    model.net.eval()
    try:
        # Hooks would make torch.compile compile a block again for every text length.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield model.net
    finally:
        for module in training:
            module.training = True


def _forward(model: LitCharLM, text: str) -> tuple[list[str], Tensor, Tensor]:
    """Return names of the stages, the residual stream (S, T, C), and log-probabilities (T, V)."""
    ids = _encode(model, text)
    has_residual = hasattr(model.net, "unembed")
    stages = {"embed": _embedding(model), **_layers(model)} if has_residual else {}
    found: list[Tensor] = []
    with _evaluation_mode(model) as net, ExitStack() as hooks:
        for module in stages.values():
            hooks.enter_context(module.register_forward_hook(lambda _, __, x: found.append(x[0])))
        logits = net(ids[None])[0].float()
    residual = torch.stack(found) if found else logits.new_empty(0, *logits.shape)
    return list(stages), residual, logits.log_softmax(-1)


def _encode(model: LitCharLM, text: str, min_length: int = 1, must_fit: bool = True) -> Tensor:
    """Return ids (T,) of a text; with `must_fit`, refuse one longer than the context."""
    if len(text) < min_length or (must_fit and len(text) > model.context):
        most = f" and at most {model.context}, the model's context" if must_fit else ""
        raise InputError(f"the text has {len(text)} characters: give at least {min_length}{most}.")
    return model.tokenizer.encode(text).to(model.device)


def _layers(model: LitCharLM) -> dict[str, nn.Module]:
    """Return the layers by name, in order: the blocks, or the one attention of `AttentionLM`."""
    net: Any = model.net
    if hasattr(net, "blocks"):
        return {f"blocks.{i}": block for i, block in enumerate(net.blocks)}
    if hasattr(net, "attention"):
        return {"attention": net.attention}
    raise _missing(model, "layers")


def _attentions(model: LitCharLM, parts: Iterable[nn.Module]) -> list[Any]:
    """Return the attention modules in parts of the network."""
    found = [m for part in parts for m in part.modules() if hasattr(m, "weights")]
    if not found:
        raise _missing(model, "attention with a method `weights`")
    return found


def _count_heads(attention: Any) -> int:
    """Return the number of heads; attention without an output projection is one head."""
    return int(attention.heads) if hasattr(attention, "output") else 1


def _embedding(model: LitCharLM) -> Any:
    """Return the module that maps ids to vectors; for a bigram, its table of logits."""
    for name in ("embed", "table"):
        if hasattr(model.net, name):
            return getattr(model.net, name)
    raise _missing(model, "embedding")


def _zero_index(x: Tensor, dim: int, index: int) -> Tensor:
    return x.index_fill(dim, torch.tensor([index], device=x.device), 0.0)


def _missing(model: LitCharLM, part: str) -> InputError:
    hint = " of its own: use one of its members, inspection.member(model, 0)"
    where = hint if hasattr(model.net, "members") else ""
    return InputError(f"{type(model.net).__name__} has no {part}{where}.")


def _item_at(name: str, items: Sequence[Any], index: int) -> Any:
    if not 0 <= index < len(items):
        raise InputError(f"{name} is {index}: it must be from 0 to {len(items) - 1}.")
    return items[index]
