"""Vectors of characters, their similarities and the tree of them.

Shapes: T characters of a text, C channels, V alphabet size.
"""

from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from laws import ALPHABET
from reference_networks import TEXT, every_single, residual, single_network
from torch import Tensor
from torch.nn import functional as F

from lit_gpt_scratch import inspection
from lit_gpt_scratch.models import GPT, AttentionLM, Bigram


def random(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@every_single
@torch.no_grad()
def test_embeddings_are_a_copy_of_the_table(config: Path) -> None:
    model = single_network(config)
    net: Any = model.net
    rows = inspection.embeddings(model)
    table = net.table if isinstance(net, Bigram) else net.embed.character
    assert torch.equal(rows, table(torch.arange(len(ALPHABET))))
    rows.zero_()
    assert table.weight.any(), "embeddings returned the table itself"


@every_single
@torch.no_grad()
def test_the_logits_are_the_normed_stream_times_the_unembeddings(config: Path) -> None:
    model = single_network(config)
    net: Any = model.net
    rows, ids = inspection.unembeddings(model), model.tokenizer.encode(TEXT)
    expected = net(ids[None])[0]
    if isinstance(net, Bigram):
        found = rows[:, ids].T
    elif isinstance(net, AttentionLM):
        found = residual(net, ids)[-1] @ rows.T + net.unembed.bias
    else:
        x = residual(net, ids)[-1]
        x = x - x.mean(-1, keepdim=True) if isinstance(net, GPT) else x
        found = x / x.square().mean(-1, keepdim=True).sqrt() @ rows.T
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    rows.zero_()
    assert torch.equal(net(ids[None])[0], expected), "unembeddings returned the weights themselves"


def test_similarity_is_the_cosine_without_the_mean_of_all_rows() -> None:
    rows = random(6, 4)
    centred = rows - rows.mean(0)
    for row, line in zip(centred, inspection.similarity(rows), strict=True):
        torch.testing.assert_close(line, F.cosine_similarity(row[None], centred))


def test_closest_pairs_are_the_pairs_with_the_largest_cosines_each_once() -> None:
    cosines = inspection.similarity(random(6, 4))
    pairs = [(cosines[i, j].item(), ALPHABET[i], ALPHABET[j]) for i, j in combinations(range(6), 2)]
    expected = [(a, b, value) for value, a, b in sorted(pairs, reverse=True)]
    assert inspection.closest_pairs(cosines, ALPHABET, 100) == expected
    assert inspection.closest_pairs(cosines, ALPHABET, 4) == expected[:4]


def test_clusters_join_the_two_groups_with_the_largest_mean_similarity() -> None:
    """Until there is one group; so the similarity never rises."""
    cosines = inspection.similarity(random(9, 4))
    groups = [[i] for i in range(9)]

    def mean(left: list[int], right: list[int]) -> float:
        return cosines[left][:, right].double().mean().item()

    for left, right, similarity in inspection.clusters(cosines):
        best = max(combinations(groups, 2), key=lambda pair: mean(*pair))
        assert {tuple(left), tuple(right)} == {tuple(group) for group in best}
        assert abs(similarity - mean(*best)) < 1e-6
        groups = [group for group in groups if group not in best] + [left + right]
    assert len(groups) == 1
    assert inspection.clusters(torch.ones(1, 1)) == []
