"""Whole texts: seeds, windows of a long text, the key-value cache, and stop sequences.

Shapes: B texts, T time, V alphabet size.
"""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import random_ids, with_random_weights
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lit_gpt_scratch.data import CharTokenizer
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.generation import Prompts, generate_text, sampling
from lit_gpt_scratch.generation.sampling import (
    SamplingSettings,
    generate,
    input_start,
    next_distribution,
    stream,
)
from lit_gpt_scratch.models.attention import MeanAttention, MultiHeadAttention, SingleHeadAttention
from lit_gpt_scratch.models.gpt import GPT, AttentionLM, Bigram, NetFactory
from lit_gpt_scratch.models.kv_cache import KVCache
from lit_gpt_scratch.models.modern import ModernGPT

SIZE, CONTEXT, NEW = 11, 6, 20
ALPHABET = CharTokenizer("abcdefghijk")

gpt, modern = (partial(kind, layers=2, width=16) for kind in (GPT, ModernGPT))
WITH_CACHE: dict[str, NetFactory] = {
    "gpt": gpt,
    "gpt with explicit attention": partial(gpt, attention=MultiHeadAttention),
    "modern gpt": modern,
}
WITHOUT_CACHE: dict[str, NetFactory] = {
    "bigram": Bigram,
    "attention lm": AttentionLM,
    "gpt with mean attention": partial(gpt, attention=MeanAttention),
    "modern gpt with one head": partial(modern, attention=SingleHeadAttention),
}
NETS = {
    name: with_random_weights(make(SIZE, CONTEXT))
    for name, make in (WITH_CACHE | WITHOUT_CACHE).items()
}
THREE_CHARACTERS = with_random_weights(GPT(3, CONTEXT, layers=1, width=16))  # stops are drawn soon


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return with_random_weights(GPT(SIZE, CONTEXT, layers=1, width=16))


def new_ids(
    net: nn.Module,
    prompt: Tensor,
    indices: list[int] | None = None,
    cached: bool = True,
    **arguments: float,
) -> Tensor:
    """Return the generated ids without the prompt."""
    sampling = SamplingSettings(**{"max_new_tokens": NEW} | arguments)
    ids = generate(net, prompt, CONTEXT, sampling, indices, cached)
    assert torch.equal(ids[:, : prompt.size(1)], prompt)
    return ids[:, prompt.size(1) :]


# Seeds and settings


def test_a_text_depends_on_its_own_seed_and_index_only(net: nn.Module) -> None:
    """Not on other texts in its batch, nor on its place in the batch."""
    prompts = random_ids(SIZE, 5, 4)
    batch = new_ids(net, prompts)
    for i in range(5):
        assert torch.equal(new_ids(net, prompts[i : i + 1], [i])[0], batch[i])
    order = [3, 0, 4, 1, 2]
    assert torch.equal(new_ids(net, prompts[order], order), batch[order])


def test_another_seed_or_index_gives_another_text(net: nn.Module) -> None:
    prompt = random_ids(SIZE, 1, 4)
    texts = [new_ids(net, prompt, [i], seed=s) for i, s in [(0, 1), (1, 1), (0, 2)]]
    assert len({tuple(text[0].tolist()) for text in texts}) == 3


def test_a_shorter_text_is_the_beginning_of_a_longer_one(net: nn.Module) -> None:
    prompt = random_ids(SIZE, 2, 4)
    long = new_ids(net, prompt, max_new_tokens=30)
    assert torch.equal(new_ids(net, prompt, max_new_tokens=9), long[:, :9])


def test_deterministic_algorithms_draw_the_same_text(net: nn.Module) -> None:
    prompt = random_ids(SIZE, 2, 3)
    expected = new_ids(net, prompt, top_p=0.8)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(new_ids(net, prompt, top_p=0.8), expected)
    finally:
        torch.use_deterministic_algorithms(False)


def windows(net: nn.Module, ids: Tensor, start: int) -> Iterator[tuple[Tensor, Tensor]]:
    """From `start` on, yield each id (B,) and the logits (B, V) of the window before it."""
    for t in range(start, ids.size(1)):
        with torch.no_grad():
            yield ids[:, t], net(ids[:, input_start(t, CONTEXT) : t])[:, -1]


@pytest.mark.parametrize("name", NETS)
def test_temperature_0_takes_the_most_likely_character_each_time(name: str) -> None:
    """With any seed."""
    prompt = random_ids(SIZE, 2, 4)
    new = new_ids(NETS[name], prompt, temperature=0.0)
    for drawn, logits in windows(NETS[name], torch.cat([prompt, new], dim=1), 4):
        assert torch.equal(drawn, logits.argmax(-1))
    assert torch.equal(new, new_ids(NETS[name], prompt, temperature=0.0, seed=9))


def test_texts_of_a_bigram_have_its_transition_probabilities() -> None:
    torch.manual_seed(0)
    net = Bigram(4, CONTEXT)
    nn.init.normal_(net.table.weight)
    ids = generate(net, random_ids(4, 50, 1), CONTEXT, SamplingSettings(max_new_tokens=200))
    pairs = torch.bincount((4 * ids[:, :-1] + ids[:, 1:]).flatten(), minlength=16).view(4, 4)
    p, count = net.table.weight.softmax(-1), pairs.sum(1, keepdim=True)
    error = (p * (1 - p) / count).sqrt()
    assert ((pairs / count - p).abs() < 4 * error).all()


@pytest.mark.parametrize("filters", [{"top_k": 2}, {"top_p": 0.3}, {"min_p": 0.7}], ids=str)
def test_characters_that_a_filter_drops_are_never_drawn(
    net: nn.Module, filters: dict[str, float]
) -> None:
    """Without the filter, some of them are drawn."""
    prompt = random_ids(SIZE, 5, 4)
    unfiltered, filtered = new_ids(net, prompt), new_ids(net, prompt, **filters)
    assert not torch.equal(unfiltered, filtered)
    for drawn, logits in windows(net, torch.cat([prompt, filtered], dim=1), 4):
        probabilities = next_distribution(logits, SamplingSettings(**filters))
        assert (probabilities.gather(1, drawn[:, None]) > 0).all()
        assert (probabilities == 0).any()


def test_the_temperature_changes_the_text(net: nn.Module) -> None:
    prompt = random_ids(SIZE, 2, 4)
    high, low = (new_ids(net, prompt, temperature=t) for t in (2.0, 0.5))
    assert not torch.equal(high, low)


# Windows


@given(st.integers(1, 300))
def test_a_full_window_restarts_from_its_last_half(context: int) -> None:
    """It keeps its start until it is full; then it drops almost half of its characters."""
    for length in range(1, context + 1):
        assert input_start(length, context) == 0
    starts = [input_start(length, context) for length in range(context, 4 * context + 2)]
    for length, (before, start) in enumerate(pairwise(starts), context + 1):
        if start != before:
            assert length - 1 - before == context
            assert length - start == context // 2 + 1
    assert len(set(starts)) > 3


@given(st.integers(1, 10_000), st.integers(1, 300))
def test_a_window_is_at_most_the_context_and_more_than_half_of_it(
    length: int, context: int
) -> None:
    window = length - input_start(length, context)
    assert min(length, context // 2 + 1) <= window <= context
    assert input_start(length, context) <= input_start(length + 1, context)


def test_a_context_of_1_reads_the_last_character_only() -> None:
    assert [input_start(length, 1) for length in range(1, 6)] == [0, 1, 2, 3, 4]
    net = with_random_weights(GPT(SIZE, 1, layers=1, width=16))
    prompt, sampling = random_ids(SIZE, 2, 3), SamplingSettings(max_new_tokens=8)
    texts = [generate(net, prompt, 1, sampling, cached=cached) for cached in (True, False)]
    assert torch.equal(*texts)


@pytest.mark.parametrize("length", [CONTEXT, CONTEXT + 1, 3 * CONTEXT])
@pytest.mark.parametrize("name", NETS)
def test_a_text_depends_on_the_window_of_a_long_prompt_only(name: str, length: int) -> None:
    prompt = random_ids(SIZE, 2, length)
    window = prompt[:, input_start(length, CONTEXT) :]
    assert torch.equal(new_ids(NETS[name], prompt), new_ids(NETS[name], window))


# The key-value cache


@pytest.mark.parametrize("name", WITH_CACHE)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.integers(1, 3))
def test_logits_with_a_cache_equal_those_without(name: str, sizes: list[int], batch: int) -> None:
    """For all sizes of the pieces in which a text is read."""
    length = sum(sizes)
    net = with_random_weights(WITH_CACHE[name](SIZE, length))
    ids = random_ids(SIZE, batch, length)
    cache = KVCache(length)
    with torch.no_grad():
        pieces = [net(piece, cache) for piece in ids.split(sizes, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), net(ids), atol=1e-5, rtol=0)
    assert cache.length == length


@pytest.mark.parametrize("name", NETS)
@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([1, CONTEXT - 1, CONTEXT, CONTEXT + 1, 3 * CONTEXT + 1]),
    st.integers(0, 2**40),
    st.sampled_from([0.0, 0.3, 1.0]),
)
def test_texts_with_a_cache_equal_those_without(
    name: str, length: int, seed: int, temperature: float
) -> None:
    """From prompts shorter and longer than the context, over several windows."""
    prompt = random_ids(SIZE, 2, length, seed=seed)
    with_cache, without_cache = (
        new_ids(NETS[name], prompt, seed=seed, temperature=temperature, cached=cached)
        for cached in (True, False)
    )
    assert torch.equal(with_cache, without_cache)


def input_lengths(net: nn.Module, length: int, cached: bool = True) -> list[int]:
    """Return the number of positions of each forward that continues a prompt of that length."""
    lengths: list[int] = []
    hook = net.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].size(1)))
    new_ids(net, random_ids(SIZE, 2, length), cached=cached)
    hook.remove()
    return lengths


RESTART = [4, 1, 1]  # at a context of 6: half of it and one character, then two single characters
EXPECTED_LENGTHS = {
    1: [1] * 6 + RESTART * 4 + [4, 1],
    4: [4, 1, 1] + RESTART * 5 + [4, 1],
    6: [6] + RESTART * 6 + [4],
    7: RESTART * 6 + [4, 1],
    20: [5, 1] + RESTART * 6,
}


@pytest.mark.parametrize("length", EXPECTED_LENGTHS)
@pytest.mark.parametrize("name", WITH_CACHE)
def test_with_a_cache_each_forward_reads_one_character(name: str, length: int) -> None:
    """Except where a window starts."""
    assert input_lengths(NETS[name], length) == EXPECTED_LENGTHS[length]


@pytest.mark.parametrize(("name", "cached"), [("gpt", False), ("gpt with mean attention", True)])
def test_without_a_cache_each_forward_reads_the_window(name: str, cached: bool) -> None:
    assert input_lengths(NETS[name], 4, cached) == [4, 5, 6] * 6 + [4, 5]


# Stop sequences and streaming


def length_to_stop(new: list[int], stop: list[int]) -> int:
    """Return the number of new ids up to the end of the first stop, or of all without a stop."""
    ends = range(len(stop), len(new) + 1)
    return next((end for end in ends if new[end - len(stop) : end] == stop), len(new))


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=3), st.integers(1, 3), st.integers(0, 99))
def test_generation_ends_when_every_text_has_drawn_the_stop(
    stop: list[int], batch: int, seed: int
) -> None:
    """No sooner; until then the ids are the same as without a stop."""
    prompt = torch.tensor([stop * 2]).expand(batch, -1)  # a stop in the prompt does not count
    sampling = SamplingSettings(max_new_tokens=NEW, seed=seed)
    full = generate(THREE_CHARACTERS, prompt, CONTEXT, sampling)[:, prompt.size(1) :]
    drawn = list(stream(THREE_CHARACTERS, prompt, CONTEXT, sampling, stop=torch.tensor(stop)))
    assert len(drawn) == max(length_to_stop(row, stop) for row in full.tolist())
    assert torch.equal(torch.stack(drawn, dim=1), full[:, : len(drawn)])


def test_stream_yields_each_character_before_it_computes_the_next(net: nn.Module) -> None:
    forwards: list[int] = []
    hook = net.register_forward_pre_hook(lambda *_: forwards.append(1))
    prompt, sampling = random_ids(SIZE, 1, 4), SamplingSettings(max_new_tokens=NEW)
    for yielded, _ in enumerate(stream(net, prompt, CONTEXT, sampling), 1):
        assert len(forwards) == yielded
    hook.remove()
    assert yielded == NEW


# Networks that diverge, and how often a GPU is waited for


class Diverging(nn.Module):
    """All characters are equally likely. From a length of the text on, the logits are not finite.

    Fails if it reads an id that does not exist: on a GPU, that would end the process.
    """

    def __init__(self, length: int, number: float) -> None:
        super().__init__()
        self.length, self.number = length, number

    def forward(self, ids: Tensor) -> Tensor:
        assert 0 <= ids.min() <= ids.max() < SIZE
        logits = torch.zeros(*ids.shape, SIZE)
        logits[:1, self.length - 1 :, 3] = self.number  # in the first text
        return logits


LONG = SamplingSettings(max_new_tokens=150)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("length", [1, 2, 64, 65, 150])
def test_no_text_of_a_diverged_network_is_returned(length: int, number: float) -> None:
    """Also if only the last character is drawn from logits that are not finite."""
    net, prompt = Diverging(length, number), torch.zeros(2, 1, dtype=torch.long)
    with pytest.raises(InputError, match="logits are not all finite"):
        generate(net, prompt, 200, LONG)
    with pytest.raises(InputError, match="logits are not all finite"):
        generate_text(net, ALPHABET, 200, Prompts(prompt, settings=LONG))


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("stop", ["", "kkkk"])
def test_no_character_of_a_diverged_network_is_shown(number: float, stop: str) -> None:
    """What was drawn before is shown, as without the error."""
    prompt, shown = torch.zeros(2, 1, dtype=torch.long), []
    net, finite = Diverging(80, number), Diverging(80, 0.0)
    show = Prompts(prompt, settings=LONG, stop=stop, on_text=lambda _, piece: shown.append(piece))
    with pytest.raises(InputError, match="logits are not all finite"):
        generate_text(net, ALPHABET, 200, show)
    before, shown[:] = "".join(shown), []
    generate_text(finite, ALPHABET, 200, show)
    assert before == "".join(shown)[: 80 - len(stop)]
    drawn = []
    with pytest.raises(InputError, match="logits are not all finite"):
        drawn.extend(stream(net, prompt, 200, LONG))
    assert len(drawn) == 79


class CountWaits(TorchDispatchMode):
    """Counts the numbers that the program takes out of tensors: each time, a GPU is waited for."""

    count = 0
    names = ("aten.item.default", "aten.is_nonzero.default", "aten._local_scalar_dense.default")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += str(func) in self.names
        return func(*args, **kwargs or {})


def test_a_gpu_is_waited_for_once_in_64_characters(net: nn.Module) -> None:
    """And at the end. A text that is shown while it is drawn takes one wait for each character."""
    prompt = random_ids(SIZE, 2, 4)
    with CountWaits() as waits:
        generate(net, prompt, CONTEXT, LONG)
    assert waits.count == 3
    with CountWaits() as waits:
        for drawn, _ in enumerate(stream(net, prompt, CONTEXT, LONG), 1):
            assert waits.count == drawn
    assert drawn == 150


@pytest.mark.parametrize("way", ["generate", "generate_text"])
def test_few_texts_of_a_small_network_take_one_thread(
    monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Then the number of threads is as before. A user's own number stays."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    net, seen = Bigram(16, CONTEXT), []
    monkeypatch.setattr(sampling, "SMALL", 3 * 16 * 16)
    net.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))

    def threads(texts: int) -> int:
        ids, how = torch.zeros(texts, 1, dtype=torch.long), SamplingSettings(max_new_tokens=1)
        if way == "generate":
            generate(net, ids, CONTEXT, how)
        else:
            generate_text(
                net, CharTokenizer("abcdefghijklmnop"), CONTEXT, Prompts(ids, settings=how)
            )
        assert torch.get_num_threads() == 2
        return seen[-1]

    torch.set_num_threads(2)
    try:
        assert [threads(texts) for texts in (1, 2, 3, 4)] == [1, 1, 2, 2]
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        assert threads(1) == 2
    finally:
        torch.set_num_threads(1)  # as in conftest.py
