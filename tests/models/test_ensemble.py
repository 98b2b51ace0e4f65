"""Ensembles: members train separately; their probabilities are averaged."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import random_ids, run_in_pieces, with_random_weights
from torch.nn import functional as F

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models.ensemble import Ensemble
from lit_gpt_scratch.models.gpt import GPT, Bigram

MEMBER = partial(GPT, layers=1, width=16)


@torch.no_grad()
@given(st.integers(1, 4), st.integers(1, 5))
def test_an_ensembles_probabilities_are_the_mean_of_its_members(size: int, batch: int) -> None:
    """The members have different weights. The probabilities sum to 1."""
    net = with_random_weights(Ensemble(11, 7, MEMBER, size))
    ids = random_ids(11, batch, 7)
    mean = sum(member(ids).softmax(-1) for member in net.members) / size
    torch.testing.assert_close(net(ids).exp(), mean)
    torch.testing.assert_close(net(ids).exp().sum(-1), torch.ones(batch, 7))


@torch.no_grad()
@given(st.lists(st.integers(1, 3), min_size=1, max_size=5))
def test_logits_in_pieces_with_a_cache_equal_logits_at_once(sizes: list[int]) -> None:
    """All members share one cache; each starts at the same position."""
    net = with_random_weights(Ensemble(11, 15, MEMBER, size=3))
    ids = random_ids(11, 2, sum(sizes))
    torch.testing.assert_close(run_in_pieces(net, ids, sizes), net(ids), atol=1e-5, rtol=1e-5)


def test_each_member_learns_from_its_own_texts_only() -> None:
    """Its logits and gradients are those of a member trained alone on these texts."""
    net = with_random_weights(Ensemble(11, 7, MEMBER, size=3)).train()
    ids, targets = random_ids(11, 7, 7), random_ids(11, 7, 7, seed=1)
    logits = net(ids)
    F.cross_entropy(logits.mT, targets, reduction="sum").backward()
    ensemble_grads = [[p.grad.clone() for p in member.parameters()] for member in net.members]
    for i, member in enumerate(net.members):
        member.zero_grad()
        member_logits = member(ids[i::3])
        assert torch.equal(logits[i::3], member_logits)
        F.cross_entropy(member_logits.mT, targets[i::3], reduction="sum").backward()
        for p, grad in zip(member.parameters(), ensemble_grads[i], strict=True):
            assert grad.any()
            assert torch.equal(p.grad, grad)


def test_members_start_with_different_weights() -> None:
    first, second = Ensemble(11, 7, MEMBER, size=2).members
    assert not torch.equal(first.embed.character.weight, second.embed.character.weight)


def test_a_batch_with_fewer_texts_than_members_is_refused() -> None:
    with pytest.raises(InputError, match=r"4 members .* batch of 3: .*--data.batch_size"):
        Ensemble(11, 7, MEMBER, size=4).train()(random_ids(11, 3, 7))


@pytest.mark.parametrize(("net", "size"), [(GPT, 0), (Bigram, -1)])
def test_an_ensemble_without_members_is_refused(net: type, size: int) -> None:
    with pytest.raises(InputError, match=f"size is {size}"):
        Ensemble(11, 7, net, size)
