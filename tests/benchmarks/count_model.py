"""Kneser-Ney: a language model that only counts. It shows what counting can do without a network.

Shapes: N characters of a text, G different n-grams.
"""

import time
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lit_gpt_scratch.data import CharDataModule
from lit_gpt_scratch.data.windows import Share, consecutive_windows

# The order, and the weight of its probabilities beside those of a network. Both were chosen on a
# tenth held out of the training split.
ORDER, WEIGHT = 6, 0.1
Ints, Floats = NDArray[np.int64], NDArray[np.float64]


def n_grams(ids: Ints, n: int, size: int) -> Ints:
    """Return the n-grams of a text (N,) as numbers (N - n + 1,): ids are digits in base `size`."""
    count = len(ids) - n + 1
    codes = np.zeros(count, np.int64)
    for i in range(n):
        codes = codes * size + ids[i : i + count]
    return codes


def counts(ids: Ints, n: int, order: int, size: int) -> tuple[Ints, Ints]:
    """Return the different n-grams (G,) of a text and a count (G,) for each.

    For the longest n-grams, it is how often they occur. For shorter ones, it is how many different
    characters stand before them: this says how likely they are in a new context.
    """
    if n == order:
        grams, found = np.unique(n_grams(ids, n, size), return_counts=True)
    else:
        longer = np.unique(n_grams(ids, n + 1, size))
        grams, found = np.unique(longer % size**n, return_counts=True)
    return grams, found


def discounts(found: Ints) -> Floats:
    """Return what to subtract from counts of 0, 1, 2, over 2 (Chen and Goodman 1999, eq. 26)."""
    times = [max(1, int((found == k).sum())) for k in range(1, 5)]
    y = times[0] / (times[0] + 2 * times[1])
    taken = [k - (k + 1) * y * times[k] / times[k - 1] for k in (1, 2, 3)]
    return np.array([0.0, *np.clip(taken, 0, (1, 2, 3))])


def kneser_ney(train: Ints, text: Ints, order: int, size: int, window: int | None = None) -> Floats:
    """Return the probability (N - 1,) of each character of a text (N,), except the first.

    Interpolated modified Kneser-Ney smoothing (Chen and Goodman 1999) of `order` - 1 characters of
    context. The discounts take a part of the counts after a context. The probabilities after the
    next shorter context distribute this part. An alphabet of `size` characters must have
    size ** order < 2 ** 63.

    If `window` is given, a context does not reach back beyond the start of a character's window,
    as with a network: windows of this many inputs cut the text, and the k-th prediction in a window
    reads k characters.
    """
    readable = np.arange(len(text) - 1) % (window or len(text)) + 1  # characters of context
    probabilities = np.full(len(text) - 1, 1 / size)
    for n in range(1, min(order, len(text)) + 1):
        grams, found = counts(train, n, order, size)
        discount = discounts(found)[np.minimum(found, 3)]
        contexts, place = np.unique(grams // size, return_inverse=True)
        total, taken = np.bincount(place, found), np.bincount(place, discount)
        start = max(0, n - 2)  # the first character with n - 1 characters before it
        asked = n_grams(text, n, size)[1 if n == 1 else 0 :]
        at = np.minimum(np.searchsorted(contexts, asked // size), len(contexts) - 1)
        gram = np.minimum(np.searchsorted(grams, asked), len(grams) - 1)
        rest = np.where(grams[gram] == asked, found[gram] - discount[gram], 0)
        mixed = (rest + taken[at] * probabilities[start:]) / total[at]
        is_known = (contexts[at] == asked // size) & (readable[start:] >= n - 1)
        probabilities[start:] = np.where(is_known, mixed, probabilities[start:])
    return probabilities


class Counted(NamedTuple):
    """The probabilities (N - 1,) of the validation split's characters, and the seconds it took."""

    probabilities: torch.Tensor
    seconds: float

    @property
    def loss(self) -> float:
        """Return the mean loss in nats per character."""
        return -float(self.probabilities.log().mean())


def count(data: CharDataModule) -> Counted:
    """Count the training split, and predict each character of the validation split but the first.

    It reads the same characters as a network: those of a window.
    """
    started = time.perf_counter()
    splits = data.splits.train, data.splits.val
    train, val = (data.tokens[s.start : s.stop].long().numpy() for s in splits)
    found = kneser_ney(train, val, ORDER, len(data.alphabet), data.context)
    return Counted(torch.from_numpy(found), time.perf_counter() - started)


@torch.inference_mode()
def loss_with_counts(net: nn.Module, data: CharDataModule, counted: Counted) -> tuple[float, float]:
    """Return the exact validation loss of a network, and that with the counts mixed in.

    The mean of the two probabilities, with weights 1 - WEIGHT and WEIGHT, replaces the network's.
    """
    windows = consecutive_windows(data.splits.val, "val", data.context, len(data.alphabet), Share())
    batches = map(data.read_windows, windows)
    found = [net(b.inputs).float().softmax(-1).gather(-1, b.targets[..., None]) for b in batches]
    own = torch.cat([part.flatten() for part in found]).double()
    mixed = own.lerp(counted.probabilities, WEIGHT)
    return -float(own.log().mean()), -float(mixed.log().mean())
