"""From logits to text: temperature, filters, and drawing one character after the other.

Shapes: B texts, T time, V alphabet size, N characters to add.
"""

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models.attention import KVCache


@dataclass(frozen=True)
class SamplingSettings:
    """How texts are drawn. Filters apply in this order, each to what the one before it has left.

    Attributes:
        max_new_tokens: Characters to add.
        temperature: Divides the logits; 0 always takes the likeliest character (greedy).
        top_k: Draw from the k likeliest characters only; None: from all.
        top_p: Draw from the fewest likeliest characters whose probabilities reach this sum
            (nucleus sampling: Holtzman et al. 2020).
        min_p: Leave out what is less likely than this share of the likeliest (Nguyen et al. 2024).
        seed: Of the draws. Text number i depends on (seed, i), never on the texts beside it.

    Raises:
        InputError: A value out of range.
    """

    max_new_tokens: int = 500
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 1337

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens}: it must be at least 1.")
        if not 0 <= self.temperature < math.inf:
            raise InputError(
                f"temperature is {self.temperature}: it must be a number of at least 0 "
                "(0: greedy, 1: the model's own probabilities)."
            )
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k is {self.top_k}: it must be at least 1; leave it out for all.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}: it must be above 0 and at most 1 (1: all).")
        if not 0 <= self.min_p <= 1:
            raise InputError(f"min_p is {self.min_p}: it must be from 0 (all) to 1.")


def window_start(length: int, context: int) -> int:
    """Where what the network sees of a text of that many characters begins.

    A text that outgrows the context starts again from its last half context, so that it can grow by
    another half before it has to start again: positions, and with them all that a cache holds,
    stay where they are in between.
    """
    if length <= context:
        return 0
    half = context - context // 2
    return math.ceil((length - context) / half) * half


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits (B, V) with all but the k likeliest at minus infinity; ties with the k-th stay."""
    kth = logits.topk(min(k, logits.size(-1))).values[:, -1:]
    return logits.masked_fill(logits < kth, -math.inf)


def cumulate(probabilities: Tensor) -> Tensor:
    """Sums (B, V) from the first on; under `--trainer.deterministic` on the CPU.

    On a GPU, PyTorch has no deterministic cumulated sum, and refuses the one that it has.
    """
    if torch.are_deterministic_algorithms_enabled():
        return probabilities.cpu().cumsum(-1).to(probabilities.device)
    return probabilities.cumsum(-1)


def keep_top_p(probabilities: Tensor, p: float) -> Tensor:
    """Probabilities (B, V) without those that the likelier ones make up p without."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    superfluous = cumulate(ordered) - ordered >= p
    superfluous[:, 0] = False  # also of a p that is 0 in fp32
    return torch.zeros_like(ordered).scatter_(-1, order, ordered.masked_fill(superfluous, 0.0))


def next_distribution(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Probabilities (B, V) of the next character from logits (B, V), in fp32."""
    logits = logits.float()
    if settings.temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    if settings.top_k is not None:
        logits = keep_top_k(logits, settings.top_k)
    # The largest logit goes to 0 first and the temperature stays within fp32, so that at the ends
    # of the scale no 0 / 0 or infinity / infinity arises.
    temperature = min(max(settings.temperature, 1e-37), 1e37)
    probabilities = ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1)
    if settings.top_p < 1:
        probabilities = keep_top_p(probabilities, settings.top_p)
    if settings.min_p > 0:
        least = settings.min_p * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    return probabilities / probabilities.sum(-1, keepdim=True)


def uniforms(seed: int, indices: Sequence[int], count: int) -> Tensor:
    """Numbers (B, N) in [0, 1), row by row a pure function of (seed, index)."""
    rows = []
    for index in indices:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + index) % (1 << 63))
        rows.append(torch.rand(count, generator=generator))
    return torch.stack(rows)


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Ids (B, 1) at which the cumulated probabilities (B, V) pass uniform numbers (B, 1).

    Raises:
        InputError: The network says nothing that can be drawn from: it has diverged.
    """
    cumulated = cumulate(probabilities)
    if not cumulated[:, -1].isfinite().all():
        raise InputError(
            "the model's logits are not all finite numbers, so that no text can be drawn: take an "
            "earlier checkpoint, or train with a lower --model.optimizer.lr."
        )
    # Scaled by the sum that was really reached, and `right`: no id of probability 0 is drawn.
    return torch.searchsorted(cumulated, uniform * cumulated[:, -1:], right=True)


def takes_cache(net: nn.Module) -> bool:
    """Whether a network, and every member and attention in it, can go on from a cache."""
    readers = [module for module in net.modules() if hasattr(module, "weights")]
    readers += [net, *getattr(net, "members", ())]
    return all("cache" in inspect.signature(module.forward).parameters for module in readers)


@torch.inference_mode()
def stream(
    net: nn.Module,
    prompt: Tensor,
    context: int,
    settings: SamplingSettings,
    indices: Sequence[int] | None = None,
    stop: Tensor | None = None,
    cached: bool = True,
) -> Iterator[Tensor]:
    """Continue prompts by one character at a time.

    Args:
        net: From ids (B, T) to logits (B, T, V); it is called in the mode that it is in.
        prompt: ids (B, T), at least one; `window_start` says how many of them are seen.
        context: Longest input of the network.
        settings: How to draw.
        indices: The number of each text, for its draws; the default counts from 0.
        stop: ids (S,): no more are drawn once every text has drawn these.
        cached: Use a cache where the network takes one; the texts are the same without.

    Yields:
        ids (B,) of the next character of each text.
    """
    batch, start = prompt.shape
    indices = range(batch) if indices is None else indices
    draws = uniforms(settings.seed, indices, settings.max_new_tokens).to(prompt.device)
    ids = torch.cat([prompt, prompt.new_empty(batch, settings.max_new_tokens)], dim=1)
    cached = cached and takes_cache(net)
    stopped = torch.zeros(batch, dtype=torch.bool, device=prompt.device)
    caches: list[KVCache] = []
    first = -1  # of the window that the caches hold
    for i in range(settings.max_new_tokens):
        end = start + i
        if cached and first == window_start(end, context):
            logits = net(ids[:, end - 1 : end], *caches)
        else:
            first = window_start(end, context)
            most = min(context, start + settings.max_new_tokens)
            caches = [KVCache(most)] if cached else []
            logits = net(ids[:, first:end], *caches)
        probabilities = next_distribution(logits[:, -1], settings)
        ids[:, end : end + 1] = draw(probabilities, draws[:, i : i + 1])
        yield ids[:, end]
        if stop is not None and i + 1 >= len(stop):
            stopped |= (ids[:, end + 1 - len(stop) : end + 1] == stop).all(dim=1)
            if stopped.all():
                return


def generate(
    net: nn.Module,
    prompt: Tensor,
    context: int,
    settings: SamplingSettings,
    indices: Sequence[int] | None = None,
    cached: bool = True,
) -> Tensor:
    """Texts that continue prompts, as `stream` does: ids (B, T + N), prompts included."""
    added = stream(net, prompt, context, settings, indices, cached=cached)
    return torch.cat([prompt, torch.stack(list(added), dim=1)], dim=1)
