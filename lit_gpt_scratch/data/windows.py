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
MAX_EVAL_TOKENS_ON_CUDA = 65_536  # with fewer, such a GPU waits for the processor


class Windows(NamedTuple):
    """A batch as positions in the corpus; `CharDataModule.read_windows` reads its characters."""

    starts: Tensor  # (B,) int64, the position of each window's first character
    length: int  # T
    seed: int  # of dropout in this batch; process r adds r. Evaluation has no dropout
    split: str  # train, train sample, val, test, val_strided or test_strided
    counted: Tensor | None = None  # (B,), how many last targets of each window count; None: all


class Batch(NamedTuple):
    """Inputs and targets, both (B, T) int64. Each target is the character after its input.

    With a context of 4, the window `First` has the inputs `Firs` and the targets `irst`.
    """

    inputs: Tensor
    targets: Tensor
    seed: int
    split: str
    counted: Tensor | None = None  # (B, T) bool, the targets that count; None: all


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
    """The part of every batch that this process computes, if several train together, and where.

    With one process, it is the whole batch: skip it on a first reading.
    """

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"  # its kind: cpu, cuda or mps

    @classmethod
    def of(cls, trainer: Any) -> "Share":
        """Return the share of a Trainer's process; without a Trainer, everything on the CPU."""
        if not trainer:
            return cls()
        return cls(trainer.global_rank, trainer.world_size, trainer.strategy.root_device.type)

    def take(self, starts: Tensor) -> Tensor:
        return starts[self.rank :: self.world_size]


def require_divisible_batch(batch_size: int, world_size: int) -> None:
    """Raise `InputError` unless every process gets the same number of windows."""
    if batch_size % world_size:
        raise InputError(
            f"batch_size is {batch_size}, but there are {world_size} processes: give a multiple of "
            f"{world_size}."
        )


def eval_batch_size(length: int, alphabet_size: int, device: str = "cpu") -> int:
    """Return how many windows of `length` characters to evaluate at once on a kind of device."""
    tokens = MAX_EVAL_TOKENS_ON_CUDA if device == "cuda" else MAX_EVAL_TOKENS
    return max(1, min(tokens, MAX_EVAL_LOGITS // alphabet_size) // length)


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


def overlapping_windows(
    split: range, name: str, stride: int, context: int, alphabet_size: int, share: Share
) -> Iterator[Windows]:
    """Cover a split with windows that begin at a distance of `stride`, all of full length.

    The first window counts all its targets. Each later window counts only its last `stride`
    targets, which have at least context - stride characters before them. The last window ends with
    the split and counts what is left. So each character except the first is counted once.
    """
    ends = torch.arange(context, len(split) - 1 + stride, stride).clamp_(max=len(split) - 1)
    counted = ends.diff(prepend=torch.zeros(1, dtype=torch.int64))
    yield from _batches(split.start + ends - context, context, name, alphabet_size, share, counted)


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
    starts: Tensor,
    length: int,
    name: str,
    alphabet_size: int,
    share: Share,
    counted: Tensor | None = None,
) -> Iterator[Windows]:
    """Yield this process' share of windows in batches that fit into memory.

    All processes get the same number of batches, because those that split the weights can only
    compute together. One that has no windows left reads the first window, and counts nothing.
    """
    own, size = share.take(starts), eval_batch_size(length, alphabet_size, share.device)
    longest = -(-len(starts) // share.world_size)  # share; others have one window less, or as many
    for i in range(0, longest, size):
        part = share.take(counted)[i : i + size] if counted is not None else None
        if i < len(own):
            yield Windows(own[i : i + size], length, 0, name, part)
        else:
            yield Windows(starts[:1], length, 0, name, torch.zeros(1, dtype=torch.int64))


def random_bits(seed: int, k: int, count: int) -> NDArray[np.uint64]:
    """Return (count,) random 64-bit integers for step k, computed from the seed and k alone.

    Philox is a counter-based generator (Salmon et al. 2011): the numbers of any k are computed
    directly, at the same cost. Its raw bits are stable across NumPy versions.
    """
    return np.random.Philox(key=np.array([seed, k], dtype=np.uint64)).random_raw(count)


def permute(
    numbers: NDArray[np.uint64], count: int, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """Apply a random permutation of 0, 1, ..., count - 1 to some of these numbers.

    The keys choose the permutation; nothing is stored. It is a Feistel network (Luby and Rackoff
    1988): each round adds a hash of the right half of a number's bits to its left half, and swaps
    the halves. A result that is too large is permuted again (Black and Rogaway 2002).
    """
    half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))  # bits
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = numbers >> half, numbers & mask
    for key in keys:
        # The hash is one step of SplitMix64 (Steele et al. 2014).
        mixed = (right ^ key) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        left, right = right, left ^ ((mixed >> np.uint64(31)) & mask)
    permuted = (left << half) | right
    large = permuted >= count
    if large.any():
        permuted[large] = permute(permuted[large], count, keys)
    return permuted


def starts_in_passes(first: int, count: int, length: int, context: int, seed: int) -> Tensor:
    """Return the starts (count,) of window `first` and the next ones, in a text of `length`.

    Training reads the text in passes. A pass cuts the text into windows side by side, and reads
    them in random order. It begins at a random position below `context`, its phase, so that each
    pass has other windows. The seed and the number of a window give its start.
    """
    per_pass = max(1, (length - context) // context)
    phases = min(context, length - per_pass * context)
    starts = []
    while count:
        number, index = divmod(first, per_pass)
        size = min(count, per_pass - index)
        # Steps use keys under 2**32. Passes use others.
        phase, *keys = random_bits((1 << 32) + seed, number % (1 << 64), 5)
        indices = permute(np.arange(index, index + size, dtype=np.uint64), per_pass, np.array(keys))
        starts.append(int(phase) % phases + context * torch.from_numpy(indices.astype(np.int64)))
        first, count = first + size, count - size
    return torch.cat(starts)


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
