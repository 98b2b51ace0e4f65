"""Laws that every network of this project obeys; `lit-gpt-scratch check` and the tests use them.

Each function returns what it has seen to be wrong, in words; an empty text if the law holds.

Shapes: B texts, T positions, V alphabet size.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt_scratch.models.attention import has_weights
from lit_gpt_scratch.models.kv_cache import KVCache

TEXTS = 3  # in a batch
CACHE_TOLERANCE = 1e-5


def random_ids(size: int, *shape: int, seed: int = 0) -> Tensor:
    """Return random ids below `size`; the same for the same seed."""
    return torch.randint(size, shape, generator=torch.Generator().manual_seed(seed))


def with_random_weights(net: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode, with random weights that preserve the variance.

    An untrained network has almost uniform attention and blocks that add almost nothing, so that a
    leak could be smaller than rounding. With these weights every path contributes.
    """
    net = copy.deepcopy(net).eval()
    generator = torch.Generator().manual_seed(1)
    embeddings = {id(m.weight) for m in net.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for parameter in net.parameters():
            fan_in = 1 if id(parameter) in embeddings or not parameter.dim() else parameter.size(-1)
            parameter.normal_(std=1 / math.sqrt(fan_in), generator=generator)
    return net


def attention_inputs(net: nn.Module, ids: Tensor) -> Iterator[tuple[Any, Tensor]]:
    """Yield each attention of a network (each module with `weights`) and its input."""
    found: list[tuple[Any, Tensor]] = []
    handles = [
        module.register_forward_pre_hook(lambda module, inputs: found.append((module, inputs[0])))
        for module in net.modules()
        if has_weights(module)
    ]
    net(ids)
    for handle in handles:
        handle.remove()
    yield from found


def run_in_pieces(module: nn.Module, x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the output of a module for x (B, T, ...), computed piece by piece with a cache."""
    cache = KVCache(x.size(1))
    outputs = []
    for piece in torch.split(x, list(sizes), dim=1):
        before = cache.length
        outputs.append(module(piece, cache))
        if cache.length == before:  # a network increases the length itself, a part does not
            cache.length += piece.size(1)
    return torch.cat(outputs, dim=1)


@torch.no_grad()
def breaks_forward(net: nn.Module, size: int, context: int) -> str:
    """Attentions return x's shape, the network returns (B, T, V); all numbers are finite.

    The other laws need this.
    """
    ids = random_ids(size, 2, context)
    found: list[str] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        if not found and (wrong := wrong_output(module, output, inputs[0].shape)):
            found.append(wrong)  # before it causes errors elsewhere

    for tried in (copy.deepcopy(net).eval(), with_random_weights(net)):
        for name, module in tried.named_modules():
            if name.endswith("attention") or has_weights(module):
                module.register_forward_hook(look)
        try:
            logits = tried(ids)
        except Exception:
            if not found:
                raise
        if found:
            return found[0]
        if wrong := wrong_output(net, logits, (*ids.shape, size)):
            return wrong
    return ""


def wrong_output(module: nn.Module, output: Any, shape: Sequence[int]) -> str:
    """Return what is wrong in the output of a module that must return a shape; empty: nothing."""
    forward = f"forward of {type(module).__name__}"
    if not isinstance(output, Tensor):
        return f"{forward} returns a {type(output).__name__}, it must return a tensor {(*shape,)}"
    if output.shape != tuple(shape):
        return f"{forward} returns {(*output.shape,)}, it must return {(*shape,)}"
    if not output.isfinite().all():
        return f"{forward} returns numbers that are not finite (NaN or infinite)"
    return ""


@torch.no_grad()
def breaks_shape(net: nn.Module, size: int, context: int) -> str:
    """Logits (B, T, V) for every length T; they equal the first logits of a longer text."""
    net, ids = with_random_weights(net), random_ids(size, TEXTS, context)
    full = net(ids)
    for length in range(1, context + 1):
        logits = net(ids[:, :length])
        if logits.shape != (TEXTS, length, size):
            return f"for T = {length}, the logits are {tuple(logits.shape)}, not (B, T, V)"
        change = float((logits - full[:, :length]).abs().max())
        if not change < 1e-4:
            return f"a text of {length} has other logits than the same beginning of {context}"
    return ""


@torch.no_grad()
def breaks_causality(net: nn.Module, size: int, context: int) -> str:
    """Changing a character changes the logits at its position, and no earlier logit."""
    net, ids = with_random_weights(net), random_ids(size, TEXTS, context)
    logits = net(ids)
    for t in range(context):
        changed = ids.clone()
        changed[:, t] = (ids[:, t] + 1) % size
        change = (net(changed) - logits).abs().amax(dim=(0, 2))
        early = [i for i in range(t) if not change[i] < 1e-4]
        if early:
            at = max(early, key=lambda i: float(change[i]))
            return f"changing character {t} changed the logits at {at} by {change[at]:.3f}"
        if not change[t] > 1e-2:
            return f"changing character {t} did not change its own logits"
    return ""


@torch.no_grad()
def breaks_weights(net: nn.Module, size: int, context: int) -> str:
    """`weights` is (B, H, T, T), 0 for later positions; rows sum to 1 unless declared otherwise."""
    ids = random_ids(size, TEXTS, context)
    for attention, x in attention_inputs(with_random_weights(net), ids):
        weights = attention.weights(x)
        heads = getattr(attention, "heads", 1)
        if weights.shape != (expected := (TEXTS, heads, context, context)):
            return f"weights(x) is {tuple(weights.shape)}, not {expected}"
        if weights.triu(1).any():
            return "weights(x) gives weight to later positions"
        if getattr(attention, "weights_sum_to_1", True):
            off, least = float((weights.sum(-1) - 1).abs().max()), float(weights.min())
            if not (off <= 1e-5 and least >= 0):  # also if one is nan
                return (
                    f"weights(x) are no probabilities (the smallest is {least:.3f}, a sum is off "
                    f"by {off:.3f}): if that is meant, set weights_sum_to_1 = False in the class"
                )
    return ""


def breaks_gradients(net: nn.Module, size: int, context: int) -> str:
    """Every parameter gets a gradient, which is finite and not zero everywhere; in bf16, too."""
    for dtype in (torch.float32, torch.bfloat16):
        net = with_random_weights(net).train()
        ids = random_ids(size, TEXTS, context + 1)
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            logits = net(ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        for name, parameter in net.named_parameters():
            if parameter.grad is None or not parameter.grad.any():
                return f"{name} gets no gradient"
            if not parameter.grad.isfinite().all():
                return f"the gradient of {name} is not finite in {str(dtype).partition('.')[2]}"
    return ""


@torch.no_grad()
def breaks_cache(net: nn.Module, size: int, context: int) -> str:
    """With a key-value cache, logits are the same, however the text is split into pieces."""
    net, ids = with_random_weights(net), random_ids(size, TEXTS, context)
    full, last = net(ids), context - 1
    for sizes in ([context], [1] * context, [last, 1], [2, context - 5, 1, 2]):
        change = float((run_in_pieces(net, ids, sizes) - full).abs().max())
        if not change <= CACHE_TOLERANCE:
            return f"in pieces of {sizes}, a logit changed by {change:.2g}"
    return ""


@torch.no_grad()
def breaks_start(net: nn.Module, size: int, context: int) -> str:
    """Before training, the loss is near log V: no character is preferred."""
    ids = random_ids(size, 64, context + 1)
    logits = net.eval()(ids[:, :-1]).flatten(0, 1)
    loss = float(F.cross_entropy(logits, ids[:, 1:].flatten()))
    if not abs(loss / math.log(size) - 1) <= 0.1:  # also if it is nan
        return f"the loss before training is {loss:.3f}, far from log V = {math.log(size):.3f}"
    return ""


@torch.no_grad()
def breaks_determinism(net: nn.Module, size: int, context: int) -> str:
    """In evaluation, no random number is drawn, and nothing is kept from an earlier call."""
    net = with_random_weights(net)
    ids, other = (random_ids(size, TEXTS, context, seed=seed) for seed in (0, 1))
    first = net(ids)
    net(other)
    return "" if torch.equal(net(ids), first) else "a second call with the same text differs"


def breaks_learning(net: nn.Module, size: int, context: int) -> str:
    """It memorises one batch, in which the characters repeat in a cycle."""
    net = copy.deepcopy(net).train()
    batch = (torch.arange(size)[:, None] + torch.arange(context + 1)) % size
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    for _ in range(500):
        loss = F.cross_entropy(net(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        if loss < 0.15:
            return ""
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return f"after 500 steps on one batch, the loss is still {loss.item():.2f}"
