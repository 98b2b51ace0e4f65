"""From logits to text: temperature, filters, and drawing one character after the other.

Shapes: B texts, T characters so far, V alphabet size, N new characters.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models.kv_cache import KVCache, takes_cache

SMALL = 4_000_000  # parameters times texts
CHECK_EVERY = 64  # characters between two checks of a text that is shown later; a GPU waits at each


@dataclass(frozen=True)
class SamplingSettings:
    """How characters are drawn. They apply in this order: top_k, temperature, top_p, min_p.

    Attributes:
        max_new_tokens: Number of characters to generate.
        temperature: Divides the logits; 0 always takes the most likely character (greedy).
        top_k: Keep only the k most likely characters; null keeps all.
        top_p: Keep the smallest set of most likely characters whose probabilities add up to at
            least top_p (nucleus sampling: Holtzman et al. 2020).
        min_p: Drop characters less likely than min_p times the most likely one (Nguyen et al.
            2024). If that one has probability 0.6, min_p 0.1 drops those under 0.06.
        seed: Seed of the draws. Text i depends on (seed, i), never on other texts in its batch.

    Raises `InputError` for a value out of range.
    """

    max_new_tokens: int = 500
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 1337

    def __post_init__(self) -> None:
        checks = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (0 <= self.temperature < math.inf, "a number of at least 0 (0: greedy)"),
            "top_k": (self.top_k is None or self.top_k >= 1, "at least 1; omit it to keep all"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1 (1: all)"),
            "min_p": (0 <= self.min_p <= 1, "from 0 (all) to 1"),
        }
        for name, (holds, allowed) in checks.items():
            if not holds:
                raise InputError(f"{name} is {getattr(self, name)}: it must be {allowed}.")


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Set logits (B, V) below the k-th largest to minus infinity; ties with the k-th stay."""
    kth = logits.topk(min(k, logits.size(-1))).values[:, -1:]
    return logits.masked_fill(logits < kth, -math.inf)


def cumulative_sum(probabilities: Tensor) -> Tensor:
    """Return cumulative sums (B, V).

    A GPU does not compute them deterministically: if that is required, the CPU does.
    """
    if torch.are_deterministic_algorithms_enabled():
        return probabilities.cpu().cumsum(-1).to(probabilities.device)
    return probabilities.cumsum(-1)


def keep_top_p(probabilities: Tensor, p: float) -> Tensor:
    """Set probabilities (B, V) to 0 outside the smallest top set whose sum reaches p."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    dropped = cumulative_sum(ordered) - ordered >= p  # the more likely ones sum to p already
    dropped[:, 0] = False  # a tiny p rounds to 0 in fp32, but the most likely one always stays
    return torch.zeros_like(ordered).scatter_(-1, order, ordered.masked_fill(dropped, 0.0))


def next_distribution(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Turn logits (B, V) into the probabilities (B, V) of the next character, in fp32."""
    logits = logits.float()
    if settings.temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    if settings.top_k is not None:
        logits = keep_top_k(logits, settings.top_k)
    if not 1e-3 <= settings.temperature <= 1e3:
        # Shifting the largest logit to 0 and keeping the temperature within fp32 avoids 0 / 0 and
        # infinity / infinity.
        logits = logits - logits.amax(-1, keepdim=True)
    probabilities = (logits / min(max(settings.temperature, 1e-37), 1e37)).softmax(-1)
    if settings.top_p == 1 and settings.min_p == 0:
        return probabilities
    if settings.top_p < 1:
        probabilities = keep_top_p(probabilities, settings.top_p)
    if settings.min_p > 0:
        minimum = settings.min_p * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < minimum, 0.0)
    return probabilities / probabilities.sum(-1, keepdim=True)


def uniform_numbers(seed: int, indices: Sequence[int], count: int) -> Tensor:
    """Return uniform numbers (B, N) in [0, 1); each row depends only on (seed, index)."""
    seeds = [(seed * 1_000_003 + index) % (1 << 63) for index in indices]
    rows = [torch.rand(count, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.stack(rows)


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Draw ids (B, 1): the first whose cumulative probability exceeds the uniform number (B, 1).

    This is inverse transform sampling. Each text has uniform numbers of its own, so a text does not
    depend on the others in its batch, as it would with torch.multinomial. If the probabilities
    (B, V) are not finite, the ids have no meaning, but a network can read them.
    """
    cumulative = cumulative_sum(probabilities)
    # The last sum may differ from 1 by rounding: scale the uniform numbers by it. `right=True`
    # never draws an id of probability 0.
    drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return drawn.clamp_(max=probabilities.size(-1) - 1)


def require_finite(total: Tensor) -> None:
    """Raise `InputError` if a sum of probabilities is not finite: then the model has diverged.

    This waits for the GPU.
    """
    if not math.isfinite(total):
        raise InputError(
            "the model's logits are not all finite numbers, so no text can be drawn: use an "
            "earlier checkpoint, or train with a lower --model.optimizer.lr."
        )


def input_start(length: int, context: int) -> int:
    """Return where the network's input starts in a text of the given length.

    When a text outgrows the context, about its last half becomes the new input. The start then
    stays until the context is full again: moving it gives each character another position, so that
    cached keys and values would be wrong. With a context of 8, the input of a text of 9 to 12
    characters starts at character 4, counted from 0.
    """
    if length <= context:
        return 0
    half = context - context // 2
    return math.ceil((length - context) / half) * half


@contextmanager
def one_thread() -> Iterator[None]:
    """In this `with` block, compute with one thread of the CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def one_thread_if_few(net: nn.Module, texts: int) -> AbstractContextManager[None]:
    """Return a context in which few texts of a small network are generated with one thread.

    On an idle machine, a second thread gains 6 percent for one text. But threads wait for each
    other many times in a step: if other programs use all cores, a step can take 200 times as long.
    The number of threads stays as it is if the user has set it by OMP_NUM_THREADS.
    """
    parameters = list(net.parameters())
    is_on_cpu = all(p.device.type == "cpu" for p in parameters)
    is_small = sum(p.numel() for p in parameters) * texts < SMALL
    is_free = "OMP_NUM_THREADS" not in os.environ
    return one_thread() if is_on_cpu and is_small and is_free else nullcontext()


@torch.inference_mode()
def stream(
    net: nn.Module,
    prompt: Tensor,
    context: int,
    settings: SamplingSettings,
    indices: Sequence[int] | None = None,
    stop: Tensor | None = None,
    cached: bool = True,
    check_every: int = 1,
) -> Iterator[Tensor]:
    """Continue prompts by one character at a time.

    Args:
        net: Maps ids (B, T) to logits (B, T, V). Call its `eval()` first, to turn dropout off.
        prompt: ids (B, T) with T >= 1; the network reads them from `input_start` on.
        context: Longest input of the network.
        settings: How characters are drawn.
        indices: A number for each text, which determines its draws. Default: 0, 1, ...
        stop: ids (S,). Generation ends when every text has generated this sequence.
        cached: Use a key-value cache if the network supports it. This changes only the speed.
        check_every: Check whether the model has diverged at each character, or less often, and at
            the end. Characters since the last check may have no meaning.

    Yields:
        ids (B,) of the next character of each text.

    Raises:
        InputError: Not all logits are finite.
    """
    batch, prompt_length = prompt.shape
    indices = range(batch) if indices is None else indices
    uniform = uniform_numbers(settings.seed, indices, settings.max_new_tokens).to(prompt.device)
    ids = torch.cat([prompt, prompt.new_empty(batch, settings.max_new_tokens)], dim=1)
    stopped = torch.zeros(batch, dtype=torch.bool, device=prompt.device)
    total = torch.zeros((), device=prompt.device)  # of all probabilities so far
    cached = cached and takes_cache(net)
    cache: KVCache | None = None
    cache_start = -1  # where the input in the cache starts
    for i in range(settings.max_new_tokens):
        end = prompt_length + i
        start = input_start(end, context)
        if cached and start != cache_start:  # what is stored is wrong for another start
            cache, cache_start = KVCache(min(context, ids.size(1))), start
        # With a cache, the network reads the new characters only.
        logits = net(ids[:, start + cache.length : end], cache) if cache else net(ids[:, start:end])
        probabilities = next_distribution(logits[:, -1], settings)  # the last position: (B, V)
        ids[:, end : end + 1] = draw(probabilities, uniform[:, i : i + 1])
        total += probabilities.sum()  # a sum is finite if all its terms are
        is_last = i + 1 == settings.max_new_tokens
        if stop is not None and i + 1 >= len(stop):
            stopped |= (ids[:, end + 1 - len(stop) : end + 1] == stop).all(dim=1)
            is_last |= bool(stopped.all())
        if is_last or (i + 1) % check_every == 0:
            require_finite(total)
        yield ids[:, end]
        if is_last:
            return


def generate(
    net: nn.Module,
    prompt: Tensor,
    context: int,
    settings: SamplingSettings,
    indices: Sequence[int] | None = None,
    cached: bool = True,
) -> Tensor:
    """Return prompts and their continuations by `stream` as ids (B, T + N)."""
    with one_thread_if_few(net, len(prompt)):
        added = list(stream(net, prompt, context, settings, indices, None, cached, CHECK_EVERY))
    return torch.cat([prompt, torch.stack(added, dim=1)], dim=1)
