"""Kneser-Ney: a language model that only counts. It shows what counting can do without a network.

Shapes: N characters of a text, G different n-grams.
"""

import numpy as np
from numpy.typing import NDArray

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


def kneser_ney(train: Ints, text: Ints, order: int, size: int) -> Floats:
    """Return the probability (N - 1,) of each character of a text (N,), except the first.

    Interpolated modified Kneser-Ney smoothing (Chen and Goodman 1999) of `order` - 1 characters of
    context. The discounts take a part of the counts after a context. The probabilities after the
    next shorter context distribute this part. An alphabet of `size` characters must have
    size ** order < 2 ** 63.
    """
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
        is_known = contexts[at] == asked // size
        probabilities[start:] = np.where(is_known, mixed, probabilities[start:])
    return probabilities
