"""Kneser-Ney: a language model that only counts. It shows what counting can do without a network.

Shapes: N characters of a text, G different n-grams, B windows of T inputs and one more target.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_gpt_scratch.errors import InputError, require_positive

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Table(NamedTuple):
    """All n-grams of one length, sorted. An n-gram is a number: ids are digits in base V."""

    grams: Ints  # (G,)
    counts: Floats  # (G,), after the discount
    contexts: Ints  # the different n-grams without their last character, sorted
    totals: Floats  # of the counts after each context, before the discount
    discounts: Floats  # the sum of what was subtracted after each context


class KneserNey:
    """Predicts a character from how often it followed the last characters of the training text.

    Interpolated modified Kneser-Ney smoothing (Chen and Goodman 1999). A discount takes a part of
    each count after a context. This part is distributed by the probabilities after the next shorter
    context. For contexts that are not the longest, a count is the number of different characters
    that stand before the n-gram: it says how likely the n-gram is in a new context.

    Args:
        ids: The training text, (N,).
        alphabet_size: V.
        order: Longest n-gram, so that `order` - 1 characters are the longest context.

    Raises `InputError` for an order under 1, or so large that n-grams do not fit into 63 bits.
    """

    def __init__(self, ids: Ints, alphabet_size: int, order: int = 8) -> None:
        require_positive(order=order)
        if alphabet_size**order >= 1 << 63:
            largest = next(n for n in range(order) if alphabet_size ** (n + 1) >= 1 << 63)
            raise InputError(
                f"order is {order}: with {alphabet_size:,} characters it must be at most {largest}."
            )
        self.alphabet_size = alphabet_size
        longest = min(order, len(ids))
        grams, counts = np.unique(_n_grams(ids, longest, alphabet_size), return_counts=True)
        self.tables = [_table(grams, counts, alphabet_size)]
        for n in range(longest - 1, 0, -1):
            # Each different longer n-gram counts once.
            grams, counts = np.unique(grams % alphabet_size**n, return_counts=True)
            self.tables.insert(0, _table(grams, counts, alphabet_size))

    def probabilities(self, windows: Ints) -> Floats:
        """Return the probability (B, T) of each character of windows (B, T + 1) but the first.

        A context does not begin before its window: as with a network, prediction k reads k
        characters.
        """
        found = np.full(windows[:, 1:].shape, 1 / self.alphabet_size)
        asked = windows[:, 1:].astype(np.int64)  # the n-gram that ends with each target
        for n, table in enumerate(self.tables, start=1):
            first = max(0, n - 2)  # the first target with n - 1 characters before it
            if first >= asked.shape[1]:
                break
            if n > 1:
                asked[:, first:] += windows[:, : -first - 1] * self.alphabet_size ** (n - 1)
            codes, shorter = asked[:, first:], found[:, first:]
            context = np.searchsorted(table.contexts, codes // self.alphabet_size)
            context = np.minimum(context, len(table.contexts) - 1)
            gram = np.minimum(np.searchsorted(table.grams, codes), len(table.grams) - 1)
            own = np.where(table.grams[gram] == codes, table.counts[gram], 0)
            mixed = (own + table.discounts[context] * shorter) / table.totals[context]
            is_known = table.contexts[context] == codes // self.alphabet_size
            found[:, first:] = np.where(is_known, mixed, shorter)
        return found


def discounts(counts: Ints) -> Floats:
    """Return what to subtract from counts of 0, 1, 2, over 2 (Chen and Goodman 1999, eq. 26)."""
    times = [max(1, int((counts == k).sum())) for k in range(1, 5)]
    y = times[0] / (times[0] + 2 * times[1])
    taken = [k - (k + 1) * y * times[k] / times[k - 1] for k in (1, 2, 3)]
    return np.array([0.0, *np.clip(taken, 0, (1, 2, 3))])


def _n_grams(ids: Ints, n: int, alphabet_size: int) -> Ints:
    """Return the n-grams (N - n + 1,) of a text (N,)."""
    codes = np.zeros(len(ids) - n + 1, np.int64)
    for i in range(n):
        codes = codes * alphabet_size + ids[i : i + len(codes)]
    return codes


def _table(grams: Ints, counts: Ints, alphabet_size: int) -> Table:
    discount = discounts(counts)[np.minimum(counts, 3)]
    contexts, place = np.unique(grams // alphabet_size, return_inverse=True)
    totals, taken = (np.bincount(place, values).astype(float) for values in (counts, discount))
    return Table(grams, counts - discount, contexts, totals, taken)
