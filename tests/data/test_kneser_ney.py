"""The count model against its definition, written out with dictionaries."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_gpt_scratch.data.kneser_ney import KneserNey, discounts
from lit_gpt_scratch.errors import InputError

SIZE = 3  # of the alphabet
texts = st.lists(st.integers(0, SIZE - 1), min_size=5, max_size=60)
windows = st.lists(
    st.lists(st.integers(0, SIZE - 1), min_size=7, max_size=7), min_size=1, max_size=4
)


@given(texts, st.lists(st.integers(0, SIZE - 1), max_size=5), st.integers(1, 6))
def test_probabilities_sum_to_1(train: list[int], context: list[int], order: int) -> None:
    ends = np.array([[0, *context, c] for c in range(SIZE)])
    last = KneserNey(np.array(train), SIZE, order).probabilities(ends)[:, -1]
    assert last.min() >= 0
    assert last.sum() == pytest.approx(1, abs=1e-12)


@given(texts, windows, st.integers(1, 6))
def test_probabilities_equal_their_definition(
    train: list[int], windows: list[list[int]], order: int
) -> None:
    """It is recursive in the paper. No context begins before its window."""
    order = min(order, len(train))

    def grams(n: int) -> list[tuple[int, ...]]:
        return [tuple(train[i : i + n]) for i in range(len(train) - n + 1)]

    tables: dict[int, Counter[tuple[int, ...]]] = {order: Counter(grams(order))}
    for n in range(order - 1, 0, -1):
        tables[n] = Counter(gram[1:] for gram in tables[n + 1])

    def probability(gram: tuple[int, ...]) -> float:
        if not gram:
            return 1 / SIZE
        table = tables[len(gram)]
        discount = discounts(np.array(list(table.values())))
        after = {g: c for g, c in table.items() if g[:-1] == gram[:-1]}
        shorter = probability(gram[1:])
        if not after:
            return shorter
        taken = sum(discount[min(c, 3)] for c in after.values())
        own = table[gram] - discount[min(table[gram], 3)]
        return float((own + taken * shorter) / sum(after.values()))

    expected = [
        [probability(tuple(window[max(0, i + 1 - order) : i + 1])) for i in range(1, len(window))]
        for window in windows
    ]
    found = KneserNey(np.array(train), SIZE, order).probabilities(np.array(windows))
    assert found == pytest.approx(np.array(expected), abs=1e-12)


def test_a_larger_order_predicts_a_repeated_text_better() -> None:
    text = np.tile(np.array([0, 1, 1, 2, 0, 0, 1, 2]), 20)
    losses = [-np.log(KneserNey(text, SIZE, n).probabilities(text[None])).mean() for n in (1, 2, 5)]
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 0.2


@pytest.mark.parametrize(
    ("size", "order", "message"),
    [
        (65, 11, "order is 11: with 65 characters it must be at most 10"),
        (5000, 8, "order is 8: with 5,000 characters it must be at most 5"),
        (65, 0, "order is 0"),
    ],
)
def test_an_order_that_cannot_be_counted_is_refused(size: int, order: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        KneserNey(np.zeros(9, np.int64), size, order)


@pytest.mark.parametrize(("size", "order"), [(65, 10), (5000, 5)])
def test_the_largest_order_does_not_overflow(size: int, order: int) -> None:
    text = np.full(30, size - 1)
    model = KneserNey(text, size, order)
    assert all(table.grams.min() >= 0 for table in model.tables)
    assert model.probabilities(text[None]).min() > 0.5
