"""Tests of `windows.py`: splits, batch sizes, random numbers, and the iterables of batches."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_gpt_scratch.data.windows import (
    Batches,
    Share,
    TrainWindows,
    Windows,
    eval_batch_size,
    permute,
    random_bits,
    split_corpus,
    starts_in_passes,
)

fractions = st.tuples(st.floats(0.01, 0.98), st.just(0.0) | st.floats(0.01, 0.98)).filter(
    lambda pair: sum(pair) < 0.99
)


@given(st.integers(0, 10**10), fractions)
def test_splits_are_consecutive_and_have_the_requested_sizes(
    size: int, pair: tuple[float, float]
) -> None:
    parts = vars(split_corpus(size, *pair))
    assert list(parts) == ["train", "val", "test"]
    train, val, test = parts.values()
    assert (train.start, train.stop, val.stop, test.stop) == (0, val.start, test.start, size)
    assert len(val) == pytest.approx(size * pair[0], abs=2 + size * 1e-8)
    assert len(test) == pytest.approx(size * pair[1], abs=2 + size * 1e-8)
    assert pair[1] or not test


@pytest.mark.parametrize(("device", "most"), [("cpu", 8192), ("mps", 8192), ("cuda", 65_536)])
@given(st.integers(1, 1 << 20), st.integers(1, 1 << 20))
def test_an_evaluation_batch_fits_into_memory(
    device: str, most: int, length: int, alphabet_size: int
) -> None:
    """The limit is a number of characters for small alphabets, and of logits for large ones."""
    count = eval_batch_size(length, alphabet_size, device)
    assert count == 1 or count * length * alphabet_size <= 1 << 24
    assert count == 1 or count * length <= most
    assert alphabet_size > (1 << 24) // most or (count + 1) * length > most


def test_random_bits_depend_on_seed_and_number_only() -> None:
    expected = {(seed, k): random_bits(seed, k, 5) for seed in (0, 1) for k in (0, 1, 2**63)}
    for (seed, k), bits in reversed(expected.items()):
        assert np.array_equal(random_bits(seed, k, 3), bits[:3])
    assert len({tuple(bits) for bits in expected.values()}) == len(expected)


@given(st.integers(1, 3000), st.integers(0, 2**63))
def test_permute_is_a_permutation(count: int, k: int) -> None:
    keys = random_bits(0, k, 4)
    permuted = permute(np.arange(count, dtype=np.uint64), count, keys)
    assert sorted(permuted.tolist()) == [*range(count)]
    some = np.array([count - 1, 0, count // 2], dtype=np.uint64)
    assert permute(some, count, keys).tolist() == permuted[some].tolist()


@given(st.integers(2**40, 2**62), st.integers(0, 2**63))
def test_permute_works_where_no_list_would_fit(count: int, k: int) -> None:
    numbers = np.arange(count - 64, count, dtype=np.uint64)
    permuted = permute(numbers, count, random_bits(0, k, 4))
    assert len(set(permuted.tolist())) == 64
    assert permuted.max() < count


def test_permutations_look_random() -> None:
    """Each number comes to each place equally often, and neighbours are separated."""
    permutations = np.stack(
        [permute(np.arange(20, dtype=np.uint64), 20, random_bits(7, k, 4)) for k in range(8000)]
    ).astype(int)
    for place in permutations.T:
        assert np.abs(np.bincount(place, minlength=20) - 400).max() < 5 * 400**0.5
    followed = (np.diff(permutations, axis=1) == 1).mean()
    assert followed == pytest.approx(1 / 20, rel=0.1)


@given(
    st.integers(1, 40), st.integers(0, 400), st.integers(0, 2**64), st.integers(1, 60), st.data()
)
def test_starts_in_passes_depend_on_the_number_of_the_window_only(
    context: int, extra: int, first: int, count: int, data: st.DataObject
) -> None:
    """They are the same in a larger batch, and lie in the text."""
    length = context + 1 + extra
    starts = starts_in_passes(first, count, length, context, seed=1)
    skipped = data.draw(st.integers(0, count - 1))
    rest = starts_in_passes(first + skipped, count - skipped, length, context, seed=1)
    assert torch.equal(starts[skipped:], rest)
    assert starts.min() >= 0
    assert starts.max() + context < length


def test_train_windows_asks_for_the_first_batch_when_it_is_read() -> None:
    first = 0
    loader = TrainWindows(
        lambda k: Windows(torch.tensor([k]), 1, k, "train"), lambda: first, 3, Share()
    )
    batches = iter(loader)
    first = 7
    assert [batch.seed for batch in batches] == [7, 8, 9]
    first = 10
    assert [batch.seed for batch in loader] == [10, 11, 12]
    assert len(loader) == 3


def test_batches_can_be_iterated_again_and_have_a_length() -> None:
    batches = Batches(iter("abc"))
    assert [*batches] == [*batches] == ["a", "b", "c"]
    assert len(batches) == 3
