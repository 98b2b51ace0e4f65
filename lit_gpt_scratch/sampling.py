"""From logits to text: temperature, top-k, and drawing one character after the other.

Shapes: B texts, T time, V alphabet size, N characters to add.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_gpt_scratch.errors import InputError


@dataclass(frozen=True)
class SamplingSettings:
    """How texts are drawn.

    Attributes:
        max_new_tokens: Characters to add.
        temperature: Divides the logits; 0 always takes the likeliest character (greedy).
        top_k: Draw from the k likeliest characters only; None: from all.
        seed: Of the draws. Text number i depends on (seed, i), never on the texts beside it.

    Raises:
        InputError: A value out of range.
    """

    max_new_tokens: int = 500
    temperature: float = 1.0
    top_k: int | None = None
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


def visible(ids: Tensor, context: int) -> Tensor:
    """The part of ids (B, T) that the network sees: the last `context` of them."""
    return ids[:, -context:]


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits (B, V) with all but the k likeliest at minus infinity; ties with the k-th stay."""
    kth = logits.topk(min(k, logits.size(-1))).values[:, -1:]
    return logits.masked_fill(logits < kth, -math.inf)


def next_distribution(logits: Tensor, temperature: float, top_k: int | None = None) -> Tensor:
    """Probabilities (B, V) of the next character from logits (B, V), in fp32."""
    logits = logits.float()
    if temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    # The largest logit goes to 0 first and the temperature stays within fp32, so that at the ends
    # of the scale no 0 / 0 or infinity / infinity arises.
    temperature = min(max(temperature, 1e-37), 1e37)
    return ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1)


def uniforms(seed: int, indices: Sequence[int], count: int) -> Tensor:
    """Numbers (B, N) in [0, 1), row by row a pure function of (seed, index)."""
    rows = []
    for index in indices:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + index) % (1 << 63))
        rows.append(torch.rand(count, generator=generator))
    return torch.stack(rows)


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Ids (B, 1) at which the cumulated probabilities (B, V) pass uniform numbers (B, 1)."""
    cumulated = probabilities.cumsum(-1)
    # Scaled by the sum that was really reached, and `right`: no id of probability 0 is drawn.
    return torch.searchsorted(cumulated, uniform * cumulated[:, -1:], right=True)


@torch.inference_mode()
def generate(
    net: Callable[[Tensor], Tensor],
    prompt: Tensor,
    context: int,
    settings: SamplingSettings,
    indices: Sequence[int] | None = None,
) -> Tensor:
    """Texts that continue prompts.

    Args:
        net: From ids (B, T) to logits (B, T, V); it is called in the mode that it is in.
        prompt: ids (B, T), at least one; of more than `context` the last are seen.
        context: Longest input of the network.
        settings: How to draw.
        indices: The number of each text, for its draws; the default counts from 0.

    Returns:
        ids (B, T + N), prompts included.
    """
    batch, start = prompt.shape
    indices = range(batch) if indices is None else indices
    draws = uniforms(settings.seed, indices, settings.max_new_tokens).to(prompt.device)
    ids = torch.cat([prompt, prompt.new_empty(batch, settings.max_new_tokens)], dim=1)
    for i in range(settings.max_new_tokens):
        end = start + i
        logits = net(visible(ids[:, :end], context))[:, -1]
        probabilities = next_distribution(logits, settings.temperature, settings.top_k)
        ids[:, end : end + 1] = draw(probabilities, draws[:, i : i + 1])
    return ids
