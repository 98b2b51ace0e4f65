"""Compares the characters by the vectors that a network has learned for them.

Shapes: V alphabet size, C channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt_scratch.inspection.parts import embedding, gain, output_layer
from lit_gpt_scratch.training.module import LitCharLM


class Merge(NamedTuple):
    """Two groups of ids that become one, and the mean similarity between their members."""

    left: list[int]
    right: list[int]
    similarity: float


def embeddings(model: LitCharLM) -> Tensor:
    """Return a copy of the characters' embedding rows (V, C); for a bigram, its table (V, V)."""
    module = embedding(model)
    return getattr(module, "character", module).weight.detach().clone()


def unembeddings(model: LitCharLM) -> Tensor:
    """Return the direction (V, C) of the residual stream that raises each character's logit.

    These are the rows of the output layer, times the gain of the norm before it; for a bigram, the
    columns of its table.
    """
    if hasattr(model.net, "table"):
        return embeddings(model).T
    linear, norm = output_layer(model)
    return linear.weight.detach() * gain(norm)


def similarity(rows: Tensor) -> Tensor:
    """Return the cosine (V, V) of each pair of rows (V, C), from -1 to 1.

    The mean of all rows is subtracted before, because what all characters share tells none apart.
    """
    directions = F.normalize(rows - rows.mean(0), dim=-1)
    return directions @ directions.T


def closest_pairs(cosines: Tensor, alphabet: str, count: int) -> list[tuple[str, str, float]]:
    """Return the pairs of characters with the largest cosines (V, V), in descending order."""
    first, second = torch.triu_indices(len(cosines), len(cosines), offset=1)
    values, order = cosines[first, second].sort(descending=True, stable=True)
    ids = zip(first[order].tolist(), second[order].tolist(), values.tolist(), strict=True)
    return [(alphabet[i], alphabet[j], value) for i, j, value in ids][:count]


def clusters(cosines: Tensor) -> list[Merge]:
    """Group the characters: join the two most similar groups until there is one.

    The similarity of two groups is the mean over their pairs (average linkage: Sokal and Michener
    1958), so it falls from merge to merge. `left + right` of the last merge is an order in which
    similar characters are neighbours.
    """
    size = len(cosines)
    groups = {i: [i] for i in range(size)}
    links = cosines.cpu().double().clone().fill_diagonal_(-torch.inf)
    merges = []
    for _ in range(size - 1):
        i, j = sorted(divmod(int(links.argmax()), size))
        left, right = groups[i], groups.pop(j)
        merges.append(Merge(left, right, float(links[i, j])))
        groups[i] = left + right
        joined = (len(left) * links[i] + len(right) * links[j]) / len(groups[i])
        links[i], links[:, i] = joined, joined  # -inf stays at i and j: no group joins itself
        links[j], links[:, j] = -torch.inf, -torch.inf
    return merges
