"""Splits of a corpus, and the windows of text that training and evaluation batches consist of.

Shapes: B windows in a batch of this process, T inputs in a window (the context; fewer in the last
window of a split). A window has T + 1 characters: its inputs, and the target of the last input.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_gpt_scratch.errors import InputError

# Limits for one evaluation batch, so that its logits fit into memory. Losses do not depend on them.
MAX_EVAL_TOKENS, MAX_EVAL_LOGITS = 8192, 16_777_216


class Windows(NamedTuple):
    """A batch as positions in the corpus; `CharDataModule.read_windows` reads its characters."""

    starts: Tensor  # (B,) int64, the position of each window's first character
    length: int  # T
    seed: int  # of dropout in this batch; process r adds r. Evaluation has no dropout
    split: str  # train, train sample, val or test


class Batch(NamedTuple):
    """Inputs and targets, both (B, T) int64. Each target is the character after its input.

    With a context of 4, the window `First` has the inputs `Firs` and the targets `irst`.
    """

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


class Share(NamedTuple):
    """The part of every batch that this process computes, if several train together.

    With one process, it is the whole batch: skip it on a first reading.
    """

    rank: int = 0
    world_size: int = 1

    @classmethod
    def of(cls, trainer: Any) -> "Share":
        """Return the share of a Trainer's process; everything without a Trainer."""
        return cls(trainer.global_rank, trainer.world_size) if trainer else cls()

    def take(self, starts: Tensor) -> Tensor:
        return starts[self.rank :: self.world_size]


def require_divisible_batch(batch_size: int, world_size: int) -> None:
    """Raise `InputError` unless every process gets the same number of windows."""
    if batch_size % world_size:
        raise InputError(
            f"batch_size is {batch_size}, but there are {world_size} processes: give a multiple of "
            f"{world_size}."
        )


def eval_batch_size(length: int, alphabet_size: int) -> int:
    """Return how many windows of `length` characters to evaluate at once."""
    return max(1, min(MAX_EVAL_TOKENS, MAX_EVAL_LOGITS // alphabet_size) // length)


def consecutive_windows(
    split: range, name: str, context: int, alphabet_size: int, share: Share
) -> Iterator[Windows]:
    """Cover a split with consecutive windows: each character but the first is one target.

    Raises `InputError` if there are fewer windows than processes.
    """
    target_count = len(split) - 1
    covered = target_count - target_count % context  # by windows of full length
    if covered // context < share.world_size:  # a process without windows would hang the others
        raise InputError(
            f"the {name} split has {len(split)} characters, too few for {share.world_size} "
            "processes: use fewer devices or a smaller --data.context."
        )
    starts = torch.arange(split.start, split.start + covered, context)
    yield from _batches(starts, context, name, alphabet_size, share)
    if covered < target_count:
        last = torch.tensor([split.start + covered])
        yield from _batches(last, target_count - covered, name, alphabet_size, share)


def evenly_spaced_windows(
    split: range, name: str, count: int, context: int, alphabet_size: int, share: Share
) -> Iterator[Windows]:
    """Yield windows that begin at even distances, of about `count` characters together."""
    target_count = len(split) - 1
    window_count = max(1, min(count, target_count) // context)
    distance = (target_count - context) // max(1, window_count - 1)
    starts = split.start + torch.arange(window_count) * distance
    yield from _batches(starts, context, name, alphabet_size, share)


def _batches(
    starts: Tensor, length: int, name: str, alphabet_size: int, share: Share
) -> Iterator[Windows]:
    """Yield this process' share of windows in batches that fit into memory."""
    for rows in torch.split(share.take(starts), eval_batch_size(length, alphabet_size)):
        if len(rows):
            yield Windows(rows, length, 0, name)


def random_bits(seed: int, k: int, count: int) -> NDArray[np.uint64]:
    """Return (count,) random 64-bit integers for step k, computed from the seed and k alone.

    Philox is a counter-based generator (Salmon et al. 2011): the numbers of any k are computed
    directly, at the same cost. Its raw bits are stable across NumPy versions.
    """
    return np.random.Philox(key=np.array([seed, k], dtype=np.uint64)).random_raw(count)


class TrainWindows:
    """The batches of an epoch: a share of draw(k), draw(k + 1), and so on, where k is first().

    `first` is called when the first batch is read: Lightning makes the iterator before it restores
    a checkpoint's step.
    """

    def __init__(
        self, draw: Callable[[int], Windows], first: Callable[[], int], length: int, share: Share
    ) -> None:
        self.draw, self.first, self.length, self.share = draw, first, length, share

    def __iter__(self) -> Iterator[Windows]:
        first = self.first()
        for windows in map(self.draw, range(first, first + self.length)):
            yield windows._replace(starts=self.share.take(windows.starts))

    def __len__(self) -> int:
        return self.length

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state: the step gives the next batch.

        Lightning warns about loaders without this method when a run resumes within an epoch.
        """
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing."""


class Batches:
    """Iterable of given batches. (Lightning would read a plain list as several loaders.)"""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = list(batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
