"""Splits of a corpus, and the windows of text that training and evaluation batches consist of.

Shapes: B windows in this rank's batch, T characters in a window (the context; fewer in the last
window of a split).
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lit_gpt_scratch.errors import InputError

# Limits for one evaluation batch, so that its logits fit into memory. Losses do not depend on them.
MAX_EVAL_TOKENS, MAX_EVAL_LOGITS = 1 << 13, 1 << 24


class Windows(NamedTuple):
    """A batch as positions in the corpus, before `CharDataModule.gather` reads the characters."""

    starts: Tensor  # (B,) int64, the position of each window's first character
    length: int  # T
    seed: int  # of this batch's dropout; each rank adds its number
    split: str  # train, train slice, val or test


class Batch(NamedTuple):
    """Inputs and targets, both (B, T) int64. Each target is the character after its input."""

    inputs: Tensor
    targets: Tensor
    seed: int
    split: str


@dataclass(frozen=True)
class Splits:
    """Positions of the training, validation and test text in the corpus."""

    train: range
    val: range
    test: range


def split_corpus(size: int, val_fraction: float, test_fraction: float) -> Splits:
    """Split a corpus of `size` characters into consecutive parts: training, validation, test.

    Raises `InputError` if a fraction is out of range or nothing is left for training.
    """
    if not (0 < val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
        raise InputError(
            f"val_fraction is {val_fraction} and test_fraction is {test_fraction}: the first must "
            "be above 0, the second at least 0, and their sum under 1."
        )
    train_end = int(size * round(1 - val_fraction - test_fraction, 9))
    val_end = int(size * round(1 - test_fraction, 9))
    return Splits(range(train_end), range(train_end, val_end), range(val_end, size))


def eval_batch_size(length: int, alphabet_size: int) -> int:
    """Return how many windows of `length` characters to evaluate at once."""
    return max(1, min(MAX_EVAL_TOKENS, MAX_EVAL_LOGITS // alphabet_size) // length)


def require_divisible_batch(batch_size: int, world_size: int) -> None:
    """Raise `InputError` unless every process gets the same number of windows."""
    if batch_size % world_size:
        raise InputError(
            f"batch_size is {batch_size}, but there are {world_size} processes: give a multiple of "
            f"{world_size}."
        )


def random_bits(seed: int, k: int, count: int) -> NDArray[np.uint64]:
    """Return (count,) random numbers that depend on (seed, k) only.

    Philox is a counter-based generator (Salmon et al. 2011): the numbers of any k are computed
    directly, at the same cost. Its raw bits are stable across NumPy versions.
    """
    return np.random.Philox(key=np.array([seed, k], dtype=np.uint64)).random_raw(count)


class TrainWindows:
    """Endless iterable of training batches: draw(first), draw(first + 1), and so on."""

    def __init__(self, draw: Callable[[int], Windows], first: int) -> None:
        self.draw, self.first = draw, first

    def __iter__(self) -> Iterator[Windows]:
        return map(self.draw, itertools.count(self.first))


class Batches:
    """Iterable of given batches. (Lightning would read a plain list as several loaders.)"""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = list(batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
