"""From the logits of one position to one character: settings, filters and draws.

Shapes: B texts, V alphabet size.
"""

import math

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.generation.sampling import (
    SamplingSettings,
    draw,
    keep_top_k,
    keep_top_p,
    next_distribution,
    uniform_numbers,
)

SIZE = 11
LOGITS = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=12)
TEMPERATURES = st.floats(0, allow_infinity=False, allow_nan=False)
SHARES = st.lists(st.integers(0, 40), min_size=1, max_size=10).filter(any)  # with ties and zeros
few_examples = settings(max_examples=25, deadline=None)


def distribution(logits: list[float], **arguments: float | None) -> list[float]:
    """Return the distribution of the next character after one text."""
    return next_distribution(torch.tensor([logits]), SamplingSettings(**arguments))[0].tolist()


@few_examples
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
def test_probabilities_are_not_negative_and_sum_to_1(
    logits: list[float], temperature: float, top_k: int | None, top_p: float, min_p: float
) -> None:
    """With all settings that SamplingSettings accepts."""
    actual = distribution(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    assert all(0 <= p <= 1 for p in actual)
    assert sum(actual) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("temperature", [5e-324, 1e-50, 1e-38, 1e38, 1e39, 1.7e308])
@pytest.mark.parametrize(
    ("filters", "kept"),
    [({}, 3), ({"top_k": 2}, 2), ({"top_p": 0.5}, 2), ({"min_p": 0.99}, 3)],
    ids=str,
)
def test_extreme_temperatures_are_greedy_or_uniform(
    temperature: float, filters: dict[str, float], kept: int
) -> None:
    """Also temperatures outside the range of fp32."""
    actual = distribution([1.0, 3.0, 2.0], temperature=temperature, **filters)
    if temperature < 1:
        assert actual == [0.0, 1.0, 0.0]
    else:
        assert sorted(actual) == pytest.approx([0.0] * (3 - kept) + [1 / kept] * kept)


def test_temperature_divides_the_logits() -> None:
    logits = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(0))
    one, half = (next_distribution(logits, SamplingSettings(temperature=t)) for t in (1.0, 0.5))
    torch.testing.assert_close(one, logits.softmax(-1))
    torch.testing.assert_close(half, (2 * logits).softmax(-1))


def test_probabilities_of_bf16_logits_are_fp32() -> None:
    logits = torch.zeros(1, 3, dtype=torch.bfloat16)
    assert next_distribution(logits, SamplingSettings()).dtype == torch.float32


@few_examples
@given(LOGITS)
def test_temperature_0_takes_the_most_likely_character(logits: list[float]) -> None:
    actual = distribution(logits, temperature=0.0)
    assert actual.count(1.0) == 1
    assert logits[actual.index(1.0)] == max(logits)
    assert sum(actual) == 1


@few_examples
@given(st.permutations(range(9)), st.integers(1, 12))
def test_top_k_keeps_exactly_the_k_largest_logits(logits: list[int], k: int) -> None:
    """It does not change them; a k above the alphabet size keeps all."""
    kept = keep_top_k(torch.tensor([logits]).float(), k)[0].tolist()
    assert kept == [x if x >= 9 - k else -math.inf for x in logits]


def test_top_k_keeps_all_ties_with_the_kth_logit() -> None:
    """Otherwise the order of the alphabet would decide which of them stay."""
    kept = keep_top_k(torch.tensor([[1.0, 2.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]]), 2)
    assert kept.isfinite().tolist() == [[False, True, True, True], [True] * 4]


@pytest.mark.parametrize("filters", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=str)
def test_the_strictest_filters_are_greedy(filters: dict[str, float]) -> None:
    logits = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(0))
    strict, greedy = (
        next_distribution(logits, SamplingSettings(**arguments))
        for arguments in ({"temperature": 0.7} | filters, {"temperature": 0.0})
    )
    assert torch.equal(strict, greedy)


def smallest_top_set(probabilities: list[float], p: float) -> set[int]:
    """Return the indices of the fewest most likely ones that reach p; of ties, the first."""
    chosen: list[int] = []
    for i in sorted(range(len(probabilities)), key=lambda i: -probabilities[i]):
        if math.fsum(probabilities[j] for j in chosen) < p:
            chosen.append(i)
    return set(chosen)


@given(SHARES, st.integers(1, 64))
def test_top_p_keeps_the_smallest_top_set_that_reaches_p(shares: list[int], p: int) -> None:
    """It does not change them. fp32 adds these numbers exactly; they need not sum to 1."""
    probabilities = [share / 64 for share in shares]
    kept = keep_top_p(torch.tensor([probabilities]), p / 64)[0].tolist()
    chosen = smallest_top_set(probabilities, p / 64)
    assert kept == [x if i in chosen else 0.0 for i, x in enumerate(probabilities)]


def test_top_p_keeps_the_first_of_several_ties() -> None:
    """In each row it keeps no more than it needs to reach p."""
    kept = keep_top_p(torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.125, 0.375, 0.125, 0.375]]), 0.5)
    assert kept.tolist() == [[0.25, 0.25, 0.0, 0.0], [0.0, 0.375, 0.0, 0.375]]


@pytest.mark.parametrize("top_p", [5e-324, 1e-46, 1e-30, 1e-3])
def test_a_tiny_top_p_keeps_the_most_likely_character(top_p: float) -> None:
    """Also a top_p that rounds to 0 in fp32."""
    assert distribution([1.0, 3.0, 2.0], top_p=top_p) == [0.0, 1.0, 0.0]


@few_examples
@given(LOGITS)
def test_filters_that_keep_everything_change_nothing(logits: list[float]) -> None:
    unfiltered = distribution(logits)
    assert distribution(logits, top_k=len(logits), top_p=1.0, min_p=0.0) == unfiltered


@few_examples
@given(st.permutations(range(9)), st.sampled_from([0.001, 0.01, 0.1, 0.3, 0.5, 0.9]))
def test_min_p_drops_characters_below_that_share_of_the_most_likely(
    logits: list[int], min_p: float
) -> None:
    """The ratio of two probabilities is exp(the difference of their logits)."""
    kept = [math.exp(x - 8) >= min_p for x in logits]
    total = sum(math.exp(x) for x, stays in zip(logits, kept, strict=True) if stays)
    expected = [math.exp(x) / total if stays else 0 for x, stays in zip(logits, kept, strict=True)]
    assert distribution([float(x) for x in logits], min_p=min_p) == pytest.approx(expected)


def test_min_p_keeps_ties_with_the_most_likely_character() -> None:
    assert distribution([2.0, 1.0, 2.0], min_p=1.0) == [0.5, 0.0, 0.5]


def reference_distribution(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> list[float]:
    """Apply one filter after the other, each to the result of the one before."""
    kth = sorted(logits)[-min(top_k, len(logits))]
    shares = [math.exp(x / temperature) if x >= kth else 0.0 for x in logits]
    shares = [share / math.fsum(shares) for share in shares]
    chosen = smallest_top_set(shares, top_p)
    ordered = sorted(shares, reverse=True)
    nearest = min(abs(math.fsum(ordered[:i]) - top_p) for i in range(1, len(ordered) + 1))
    assume(nearest > 1e-5)  # otherwise fp32 rounding decides
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
def test_the_order_is_top_k_temperature_top_p_min_p(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    arguments = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    expected = reference_distribution(logits, **arguments)
    assert distribution(logits, **arguments) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("rows_are", ["texts", "positions"])
def test_frequencies_of_draws_equal_the_probabilities(rows_are: str) -> None:
    """Pearson's chi-square test, over the first draws of many texts and many draws of one text."""
    weights = torch.tensor([0.0, 1.0, 2.0, 0.0, 3.0, 10.0, 0.5, 0.0])
    p, count = weights / weights.sum(), 20_000
    texts = rows_are == "texts"
    rows = uniform_numbers(7, range(count), 1) if texts else uniform_numbers(7, [3], count).T
    drawn = draw(p.expand(count, -1), rows)[:, 0]
    counts = torch.bincount(drawn, minlength=len(p))
    assert not counts[p == 0].any()
    expected = (p * count)[p > 0]
    chi_square = ((counts[p > 0] - expected).square() / expected).sum().item()
    freedom = len(expected) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)
    assert chi_square > 0.1, "too close to the probabilities to be random"


@few_examples
@given(
    st.lists(st.just(0.0) | st.floats(2**-100, 1, width=32), min_size=1, max_size=8).filter(any),
    st.sampled_from([0.0, 2**-149, 2**-24, 0.5, 1 - 2**-24]),
)
def test_a_character_of_probability_0_is_never_drawn(weights: list[float], uniform: float) -> None:
    """Even with the smallest and the largest uniform number."""
    p = torch.tensor([weights])
    p = p / p.sum()
    drawn = draw(p, torch.tensor([[uniform]])).item()
    assert p[0, drawn] > 0


def test_draw_returns_a_valid_id_when_rounding_leaves_the_sum_under_1() -> None:
    """With the largest uniform number under 1, which some of the sums do not reach."""
    p = (3 * torch.randn(2000, 65, generator=torch.Generator().manual_seed(0))).softmax(-1)
    p = torch.cat([p, torch.zeros(2000, 1)], dim=1)
    drawn = draw(p, torch.full((2000, 1), 1 - 2**-24))
    assert (p.cumsum(-1)[:, -1] < 1 - 2**-24).any()
    assert (drawn < 65).all()


def test_uniform_numbers_are_from_0_to_1() -> None:
    numbers = uniform_numbers(0, range(50), 2000)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert numbers.mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / numbers.numel()))


def test_uniform_numbers_depend_on_seed_and_index_only() -> None:
    """Not on earlier draws, other rows, or how many are drawn."""
    both = uniform_numbers(3, [5, 8], 40)
    torch.rand(7)
    assert torch.equal(uniform_numbers(3, [8], 40)[0], both[1])
    assert torch.equal(uniform_numbers(3, [5], 9)[0], both[0, :9])
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(uniform_numbers(4, [5], 40)[0], both[0])


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
def test_settings_out_of_range_are_refused_by_name(
    arguments: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        SamplingSettings(**arguments)
