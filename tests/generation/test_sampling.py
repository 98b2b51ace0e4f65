"""From logits to text: distributions, draws, and texts that depend on nothing beside them.

Shapes: B texts, T time, V alphabet size.
"""

import math
from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from laws import random_ids, stirred
from torch import Tensor, nn

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.generation.sampling import (
    SamplingSettings,
    draw,
    generate,
    keep_top_k,
    keep_top_p,
    next_distribution,
    stream,
    takes_cache,
    uniforms,
    window_start,
)
from lit_gpt_scratch.models.attention import (
    KVCache,
    MeanAttention,
    MultiHeadAttention,
    SingleHeadAttention,
)
from lit_gpt_scratch.models.gpt import GPT, AttentionLM, Bigram, NetFactory
from lit_gpt_scratch.models.modern import ModernGPT

SIZE, CONTEXT, NEW = 11, 6, 20
LOGITS = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=12)
TEMPERATURES = st.floats(0, allow_infinity=False, allow_nan=False)
SHARES = st.lists(st.integers(0, 40), min_size=1, max_size=10).filter(any)  # ties, and zeros
some = settings(max_examples=25, deadline=None)

gpt, modern = (partial(kind, layers=2, width=16) for kind in (GPT, ModernGPT))
WITH_CACHE: dict[str, NetFactory] = {
    "gpt": gpt,
    "gpt, attention written out": partial(gpt, attention=MultiHeadAttention),
    "modern gpt": modern,
}
WITHOUT_CACHE: dict[str, NetFactory] = {
    "bigram": Bigram,
    "one attention": AttentionLM,
    "gpt of means": partial(gpt, attention=MeanAttention),
    "modern gpt of one head": partial(modern, attention=SingleHeadAttention),
}
NETS = {name: stirred(make(SIZE, CONTEXT)) for name, make in (WITH_CACHE | WITHOUT_CACHE).items()}
STOPPED = stirred(GPT(3, CONTEXT, layers=1, width=16))  # of few characters: stops are drawn soon


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return stirred(GPT(SIZE, CONTEXT, layers=1, width=16))


def new_ids(
    net: nn.Module,
    prompt: Tensor,
    indices: list[int] | None = None,
    cached: bool = True,
    **how: float,
) -> Tensor:
    drawing = SamplingSettings(**{"max_new_tokens": NEW} | how)
    ids = generate(net, prompt, CONTEXT, drawing, indices, cached)
    assert torch.equal(ids[:, : prompt.size(1)], prompt)
    return ids[:, prompt.size(1) :]


def next_from(logits: list[float], **how: float | None) -> list[float]:
    """The next character's distribution after one text."""
    return next_distribution(torch.tensor([logits]), SamplingSettings(**how))[0].tolist()


# Distributions


@some
@given(
    LOGITS,
    TEMPERATURES,
    st.none() | st.integers(1, 20),
    st.floats(0, 1, exclude_min=True),
    st.floats(0, 1),
)
@example([0.0, 0.0], 1.0, None, 5e-324, 0.0)
@example([0.0, 0.0], 1.0, None, 1.0, 5e-324)
@example([0.0, -1e4], 5e-324, 2, math.nextafter(1, 0), math.nextafter(1, 0))
def test_a_distribution_is_one(
    logits: list[float], temperature: float, top_k: int | None, top_p: float, min_p: float
) -> None:
    """At anything that SamplingSettings takes: finite, not negative, of sum 1."""
    found = next_from(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    assert all(0 <= p <= 1 for p in found)
    assert sum(found) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("temperature", [5e-324, 1e-50, 1e-38, 1e38, 1e39, 1.7e308])
@pytest.mark.parametrize(
    ("filters", "kept"),
    [({}, 3), ({"top_k": 2}, 2), ({"top_p": 0.5}, 2), ({"min_p": 0.99}, 3)],
    ids=str,
)
def test_the_ends_of_the_scale_stay_finite(
    temperature: float, filters: dict[str, float], kept: int
) -> None:
    """Also beyond fp32, in which the logits are: greedy at one end, uniform at the other."""
    found = next_from([1.0, 3.0, 2.0], temperature=temperature, **filters)
    if temperature < 1:
        assert found == [0.0, 1.0, 0.0]
    else:
        assert sorted(found) == pytest.approx([0.0] * (3 - kept) + [1 / kept] * kept)


def test_temperature_1_is_the_models_own_distribution() -> None:
    logits = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(0))
    own, cool = (next_distribution(logits, SamplingSettings(temperature=t)) for t in (1.0, 0.5))
    torch.testing.assert_close(own, logits.softmax(-1))
    torch.testing.assert_close(cool, (2 * logits).softmax(-1))


def test_logits_in_half_precision_are_drawn_from_in_full() -> None:
    half = torch.zeros(1, 3, dtype=torch.bfloat16)
    assert next_distribution(half, SamplingSettings()).dtype == torch.float32


@some
@given(LOGITS)
def test_temperature_0_takes_the_likeliest(logits: list[float]) -> None:
    found = next_from(logits, temperature=0.0)
    assert found.count(1.0) == 1
    assert logits[found.index(1.0)] == max(logits)
    assert sum(found) == 1


@some
@given(st.permutations(range(9)), st.integers(1, 12))
def test_top_k_keeps_exactly_the_k_likeliest(logits: list[int], k: int) -> None:
    """Unchanged; a k above the alphabet keeps all."""
    kept = keep_top_k(torch.tensor([logits]).float(), k)[0].tolist()
    assert kept == [x if x >= 9 - k else -math.inf for x in logits]


def test_top_k_keeps_what_ties_with_the_kth() -> None:
    """Which of equals is left out would be an accident of their order."""
    kept = keep_top_k(torch.tensor([[1.0, 2.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]]), 2)
    assert kept.isfinite().tolist() == [[False, True, True, True], [True] * 4]


@pytest.mark.parametrize("filters", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=str)
def test_the_narrowest_filters_are_greedy(filters: dict[str, float]) -> None:
    logits = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(0))
    narrow, greedy = (
        next_distribution(logits, SamplingSettings(**how))
        for how in ({"temperature": 0.7} | filters, {"temperature": 0.0})
    )
    assert torch.equal(narrow, greedy)


def fewest(probabilities: list[float], p: float) -> set[int]:
    """The fewest likeliest whose probabilities reach p; of equals, the first."""
    chosen: list[int] = []
    for i in sorted(range(len(probabilities)), key=lambda i: -probabilities[i]):
        if math.fsum(probabilities[j] for j in chosen) < p:
            chosen.append(i)
    return set(chosen)


@given(SHARES, st.integers(1, 64))
def test_top_p_keeps_the_fewest_likeliest_that_reach_it(shares: list[int], p: int) -> None:
    """Unchanged; in numbers that fp32 adds up exactly, so that reaching is reaching."""
    probabilities = [share / 64 for share in shares]  # their sum counts for nothing
    kept = keep_top_p(torch.tensor([probabilities]), p / 64)[0].tolist()
    chosen = fewest(probabilities, p / 64)
    assert kept == [x if i in chosen else 0.0 for i, x in enumerate(probabilities)]


def test_deterministic_algorithms_draw_the_same(net: nn.Module) -> None:
    prompt = random_ids(SIZE, 2, 3)
    before = new_ids(net, prompt, top_p=0.8)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(new_ids(net, prompt, top_p=0.8), before)
    finally:
        torch.use_deterministic_algorithms(False)


def test_of_what_ties_top_p_keeps_the_first() -> None:
    """Row by row: the fewest that reach p, so not all that tie with the last."""
    kept = keep_top_p(torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.125, 0.375, 0.125, 0.375]]), 0.5)
    assert kept.tolist() == [[0.25, 0.25, 0.0, 0.0], [0.0, 0.375, 0.0, 0.375]]


@pytest.mark.parametrize("top_p", [5e-324, 1e-46, 1e-30, 1e-3])
def test_a_tiny_top_p_keeps_the_likeliest_alone(top_p: float) -> None:
    """However small, also beyond fp32."""
    assert next_from([1.0, 3.0, 2.0], top_p=top_p) == [0.0, 1.0, 0.0]


@some
@given(LOGITS)
def test_filters_that_leave_nothing_out_change_nothing(logits: list[float]) -> None:
    assert next_from(logits, top_k=len(logits), top_p=1.0, min_p=0.0) == next_from(logits)


@some
@given(st.permutations(range(9)), st.sampled_from([0.001, 0.01, 0.1, 0.3, 0.5, 0.9]))
def test_min_p_keeps_all_of_at_least_that_share_of_the_likeliest(
    logits: list[int], min_p: float
) -> None:
    """A probability is exp(difference of logits) of the likeliest's, whatever the others are."""
    kept = [math.exp(x - 8) >= min_p for x in logits]
    whole = sum(math.exp(x) for x, stays in zip(logits, kept, strict=True) if stays)
    wanted = [math.exp(x) / whole if stays else 0 for x, stays in zip(logits, kept, strict=True)]
    assert next_from([float(x) for x in logits], min_p=min_p) == pytest.approx(wanted)


def test_min_p_keeps_what_ties_with_the_likeliest() -> None:
    assert next_from([2.0, 1.0, 2.0], min_p=1.0) == [0.5, 0.0, 0.5]


def step_by_step(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> list[float]:
    """What is drawn from, one filter after the other, each on what the one before has left."""
    kth = sorted(logits)[-min(top_k, len(logits))]
    shares = [math.exp(x / temperature) if x >= kth else 0.0 for x in logits]
    shares = [share / math.fsum(shares) for share in shares]
    chosen = fewest(shares, top_p)
    sums = sorted(shares, reverse=True)
    nearest = min(abs(math.fsum(sums[:i]) - top_p) for i in range(1, len(sums) + 1))
    assume(nearest > 1e-5)  # or fp32 decides
    shares = [share if i in chosen else 0.0 for i, share in enumerate(shares)]
    assume(all(abs(share - min_p * max(shares)) > 1e-5 for share in shares))
    shares = [share if share >= min_p * max(shares) else 0.0 for share in shares]
    return [share / math.fsum(shares) for share in shares]


@given(
    st.permutations([0.0, 0.3, 0.7, 1.2, 1.4, 1.9, 2.5]),
    st.floats(0.3, 3),
    st.integers(1, 9),
    st.floats(0.2, 0.99),
    st.floats(0.01, 0.8),
)
def test_top_k_comes_before_temperature_before_top_p_before_min_p(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    how = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    assert next_from(logits, **how) == pytest.approx(step_by_step(logits, **how), abs=1e-5)


# Draws


@pytest.mark.parametrize("across", ["indices", "draws"])
def test_frequencies_are_the_probabilities(across: str) -> None:
    """Over many texts' first draws as over one text's many: Pearson's chi-square."""
    weights = torch.tensor([0.0, 1.0, 2.0, 0.0, 3.0, 10.0, 0.5, 0.0])
    p, count = weights / weights.sum(), 20_000
    rows = uniforms(7, range(count), 1) if across == "indices" else uniforms(7, [3], count).T
    drawn = draw(p.expand(count, -1), rows)[:, 0]
    found = torch.bincount(drawn, minlength=len(p))
    assert not found[p == 0].any()
    expected = (p * count)[p > 0]
    chi_square = ((found[p > 0] - expected).square() / expected).sum().item()
    freedom = len(expected) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)
    # Too good is not random either.
    assert chi_square > 0.1


@some
@given(
    st.lists(st.just(0.0) | st.floats(2**-100, 1, width=32), min_size=1, max_size=8).filter(any),
    st.sampled_from([0.0, 2**-149, 2**-24, 0.5, 1 - 2**-24]),
)
def test_what_has_no_probability_is_never_drawn(weights: list[float], uniform: float) -> None:
    """Not at the ends of what `uniforms` gives, nor where rounding leaves the sum off 1."""
    p = torch.tensor([weights])
    p = p / p.sum()
    drawn = draw(p, torch.tensor([[uniform]])).item()
    assert p[0, drawn] > 0


def test_an_id_is_drawn_also_where_rounding_leaves_the_sum_off_1() -> None:
    """With the largest number that there is under 1, which sums fall short of, or go beyond."""
    p = (3 * torch.randn(2000, 65, generator=torch.Generator().manual_seed(0))).softmax(-1)
    p = torch.cat([p, torch.zeros(2000, 1)], dim=1)
    drawn = draw(p, torch.full((2000, 1), 1 - 2**-24))
    assert (p.cumsum(-1)[:, -1] < 1 - 2**-24).any()
    assert (drawn < 65).all()


def test_uniforms_are_from_0_to_1() -> None:
    found = uniforms(0, range(50), 2000)
    assert found.min() >= 0
    assert found.max() < 1
    assert found.mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / found.numel()))


def test_uniforms_are_a_function_of_seed_and_index() -> None:
    """Whatever was drawn before, beside, or after."""
    both = uniforms(3, [5, 8], 40)
    torch.rand(7)
    assert torch.equal(uniforms(3, [8], 40)[0], both[1])
    assert torch.equal(uniforms(3, [5], 9)[0], both[0, :9])
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(uniforms(4, [5], 40)[0], both[0])


# Texts


def test_a_text_depends_on_its_own_seed_and_index_alone(net: nn.Module) -> None:
    """Not on its batch: alone, beside others, and in another order it is the same."""
    prompts = random_ids(SIZE, 5, 4)
    together = new_ids(net, prompts)
    for i in range(5):
        assert torch.equal(new_ids(net, prompts[i : i + 1], [i])[0], together[i])
    order = [3, 0, 4, 1, 2]
    assert torch.equal(new_ids(net, prompts[order], order), together[order])


def test_another_seed_or_index_gives_another_text(net: nn.Module) -> None:
    prompt = random_ids(SIZE, 1, 4)
    texts = [new_ids(net, prompt, [i], seed=s) for i, s in [(0, 1), (1, 1), (0, 2)]]
    assert len({tuple(text[0].tolist()) for text in texts}) == 3


def test_a_shorter_text_is_the_beginning_of_a_longer_one(net: nn.Module) -> None:
    prompt = random_ids(SIZE, 2, 4)
    long = new_ids(net, prompt, max_new_tokens=30)
    assert torch.equal(new_ids(net, prompt, max_new_tokens=9), long[:, :9])


@pytest.mark.parametrize("length", [CONTEXT, CONTEXT + 1, 3 * CONTEXT])
@pytest.mark.parametrize("name", NETS)
def test_of_a_long_prompt_the_window_alone_counts(name: str, length: int) -> None:
    prompt = random_ids(SIZE, 2, length)
    window = prompt[:, window_start(length, CONTEXT) :]
    assert torch.equal(new_ids(NETS[name], prompt), new_ids(NETS[name], window))


def windows(net: nn.Module, ids: Tensor, start: int) -> Iterator[tuple[Tensor, Tensor]]:
    """From `start` on, each character (B,), and the logits (B, V) of the window before it."""
    for t in range(start, ids.size(1)):
        with torch.no_grad():
            yield ids[:, t], net(ids[:, window_start(t, CONTEXT) : t])[:, -1]


@pytest.mark.parametrize("name", NETS)
def test_greedy_texts_take_the_likeliest_each_time(name: str) -> None:
    """Whatever the seed."""
    prompt = random_ids(SIZE, 2, 4)
    new = new_ids(NETS[name], prompt, temperature=0.0)
    for found, logits in windows(NETS[name], torch.cat([prompt, new], dim=1), 4):
        assert torch.equal(found, logits.argmax(-1))
    assert torch.equal(new, new_ids(NETS[name], prompt, temperature=0.0, seed=9))


def test_texts_have_the_networks_own_transitions() -> None:
    """A bigram's text, counted pair by pair, gives its table back."""
    torch.manual_seed(0)
    net = Bigram(4, CONTEXT)
    nn.init.normal_(net.table.weight)
    ids = generate(net, random_ids(4, 50, 1), CONTEXT, SamplingSettings(max_new_tokens=200))
    pairs = torch.bincount((4 * ids[:, :-1] + ids[:, 1:]).flatten(), minlength=16).view(4, 4)
    p, count = net.table.weight.softmax(-1), pairs.sum(1, keepdim=True)
    error = (p * (1 - p) / count).sqrt()
    assert ((pairs / count - p).abs() < 4 * error).all()


@pytest.mark.parametrize("filters", [{"top_k": 2}, {"top_p": 0.3}, {"min_p": 0.7}], ids=str)
def test_filters_reach_the_draws(net: nn.Module, filters: dict[str, float]) -> None:
    """What they leave out is never drawn; some of it would be without them."""
    prompt = random_ids(SIZE, 5, 4)
    wide, narrow = new_ids(net, prompt), new_ids(net, prompt, **filters)
    assert not torch.equal(wide, narrow)
    for found, logits in windows(net, torch.cat([prompt, narrow], dim=1), 4):
        left = next_distribution(logits, SamplingSettings(**filters))
        assert (left.gather(1, found[:, None]) > 0).all()
        assert (left == 0).any()


def test_a_hot_text_differs_from_a_cool_one(net: nn.Module) -> None:
    prompt = random_ids(SIZE, 2, 4)
    hot, cool = (new_ids(net, prompt, temperature=t) for t in (2.0, 0.5))
    assert not torch.equal(hot, cool)


# Windows and caches


@given(st.integers(1, 300))
def test_a_window_fills_up_and_then_starts_again_from_its_last_half(context: int) -> None:
    """It stays where it is until it is full; then half a context of room is made."""
    for length in range(1, context + 1):
        assert window_start(length, context) == 0
    starts = [window_start(length, context) for length in range(context, 4 * context + 2)]
    for length, (before, start) in enumerate(pairwise(starts), context + 1):
        if start != before:
            assert length - 1 - before == context
            assert length - start == context // 2 + 1
    assert len(set(starts)) > 3


@given(st.integers(1, 10_000), st.integers(1, 300))
def test_a_window_is_at_most_the_context_and_more_than_half_of_it(
    length: int, context: int
) -> None:
    seen = length - window_start(length, context)
    assert min(length, context // 2 + 1) <= seen <= context
    assert window_start(length, context) <= window_start(length + 1, context)


def test_a_context_of_1_sees_the_last_character() -> None:
    assert [window_start(length, 1) for length in range(1, 6)] == [0, 1, 2, 3, 4]
    net = stirred(GPT(SIZE, 1, layers=1, width=16))
    prompt, drawing = random_ids(SIZE, 2, 3), SamplingSettings(max_new_tokens=8)
    texts = [generate(net, prompt, 1, drawing, cached=cached) for cached in (True, False)]
    assert torch.equal(*texts)


@pytest.mark.parametrize("name", NETS)
def test_a_network_takes_a_cache_where_each_attention_in_it_does(name: str) -> None:
    assert takes_cache(NETS[name]) == (name in WITH_CACHE)


@pytest.mark.parametrize("name", WITH_CACHE)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.integers(1, 3))
def test_logits_with_a_cache_are_those_without(name: str, sizes: list[int], batch: int) -> None:
    """Whatever the sizes of the pieces that a text is read in."""
    length = sum(sizes)
    net = stirred(WITH_CACHE[name](SIZE, length))
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
def test_a_cache_changes_no_text(name: str, length: int, seed: int, temperature: float) -> None:
    """From prompts shorter and longer than the context, and on over several windows."""
    prompt = random_ids(SIZE, 2, length, seed=seed)
    with_it, without = (
        new_ids(NETS[name], prompt, seed=seed, temperature=temperature, cached=cached)
        for cached in (True, False)
    )
    assert torch.equal(with_it, without)


def positions_read(net: nn.Module, length: int, cached: bool = True) -> list[int]:
    """How many positions each forward computes, while a prompt of that length is continued."""
    sizes: list[int] = []
    hook = net.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].size(1)))
    new_ids(net, random_ids(SIZE, 2, length), cached=cached)
    hook.remove()
    return sizes


STARTED_AGAIN = [4, 1, 1]  # at a context of 6: half of it and a character, then two more
READ = {
    1: [1] * 6 + STARTED_AGAIN * 4 + [4, 1],
    4: [4, 1, 1] + STARTED_AGAIN * 5 + [4, 1],
    6: [6] + STARTED_AGAIN * 6 + [4],
    7: STARTED_AGAIN * 6 + [4, 1],
    20: [5, 1] + STARTED_AGAIN * 6,
}


@pytest.mark.parametrize("length", READ)
@pytest.mark.parametrize("name", WITH_CACHE)
def test_with_a_cache_a_character_is_read_once_in_a_window(name: str, length: int) -> None:
    """One position for each new character, but where a window starts."""
    assert positions_read(NETS[name], length) == READ[length]


@pytest.mark.parametrize(("name", "cached"), [("gpt", False), ("gpt of means", True)])
def test_without_a_cache_the_window_is_read_for_each_character(name: str, cached: bool) -> None:
    assert positions_read(NETS[name], 4, cached) == [4, 5, 6] * 6 + [4, 5]


# Stops


def end_of_stop(new: list[int], stop: list[int]) -> int:
    """How many of a text's new ids there are up to the end of the first stop, if it is there."""
    ends = range(len(stop), len(new) + 1)
    return next((end for end in ends if new[end - len(stop) : end] == stop), len(new))


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=3), st.integers(1, 3), st.integers(0, 99))
def test_drawing_ends_when_every_text_has_drawn_the_stop(
    stop: list[int], batch: int, seed: int
) -> None:
    """And no sooner; what is drawn until then is what is drawn without it."""
    prompt = torch.tensor([stop * 2]).expand(batch, -1)  # in a prompt it does not count
    drawing = SamplingSettings(max_new_tokens=NEW, seed=seed)
    every = generate(STOPPED, prompt, CONTEXT, drawing)[:, prompt.size(1) :]
    drawn = list(stream(STOPPED, prompt, CONTEXT, drawing, stop=torch.tensor(stop)))
    assert len(drawn) == max(end_of_stop(row, stop) for row in every.tolist())
    assert torch.equal(torch.stack(drawn, dim=1), every[:, : len(drawn)])


def test_characters_are_drawn_one_at_a_time(net: nn.Module) -> None:
    """Whoever takes the first has not waited for the second."""
    reads: list[int] = []
    hook = net.register_forward_pre_hook(lambda *_: reads.append(1))
    prompt, drawing = random_ids(SIZE, 1, 4), SamplingSettings(max_new_tokens=NEW)
    for taken, _ in enumerate(stream(net, prompt, CONTEXT, drawing), 1):
        assert len(reads) == taken
    hook.remove()
    assert taken == NEW


# Settings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": -5}, "max_new_tokens is -5"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": -0.5}, "top_p is -0.5"),
        ({"top_p": 1.01}, "top_p is 1.01"),
        ({"top_p": math.nan}, "top_p is nan"),
        ({"min_p": -0.01}, "min_p is -0.01"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"min_p": math.nan}, "min_p is nan"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(
    arguments: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        SamplingSettings(**arguments)
