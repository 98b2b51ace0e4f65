"""The key-value cache by itself, and which networks support one."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lit_gpt_scratch.generation.sampling import SamplingSettings, generate
from lit_gpt_scratch.models.attention import MeanAttention, MultiHeadAttention, SingleHeadAttention
from lit_gpt_scratch.models.ensemble import Ensemble
from lit_gpt_scratch.models.gpt import GPT, AttentionLM, Bigram, NetFactory
from lit_gpt_scratch.models.kv_cache import KVCache, takes_cache
from lit_gpt_scratch.models.modern import ModernGPT


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 3))
def test_a_cache_returns_all_tensors_of_an_owner_in_order(sizes: list[int], spare: int) -> None:
    """For every owner and every width, and always in the same memory."""
    cache = KVCache(sum(sizes) + spare)
    owners = {nn.Identity(): (2, 3), nn.Identity(): (5,)}
    expected = {owner: [torch.empty(2, 0, d) for d in widths] for owner, widths in owners.items()}
    memory: dict[nn.Module, list[int]] = {}
    for size in sizes:
        for owner, widths in owners.items():
            new = [torch.randn(2, size, d) for d in widths]
            pairs = zip(expected[owner], new, strict=True)
            expected[owner] = [torch.cat(pair, dim=1) for pair in pairs]
            stored = cache.extend(owner, *new)
            for x, y in zip(stored, expected[owner], strict=True):
                assert torch.equal(x, y)
            pointers = [x.data_ptr() for x in stored]
            assert memory.setdefault(owner, pointers) == pointers
        cache.length += size
    assert memory.keys() == owners.keys()
    assert len({pointer for pointers in memory.values() for pointer in pointers}) == 3


@pytest.mark.parametrize("size", [1, 2])
def test_a_full_cache_raises_an_error(size: int) -> None:
    cache, owner = KVCache(4), nn.Identity()
    cache.extend(owner, torch.zeros(2, 4, 3))
    cache.length = 4
    with pytest.raises((AssertionError, RuntimeError)):
        cache.extend(owner, torch.zeros(2, size, 3))


class PlainAttention(nn.Module):
    """An attention of a plugin: without a cache, and without weights to inspect."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x).cumsum(dim=1)


gpt, modern = (partial(kind, layers=2, width=16) for kind in (GPT, ModernGPT))


@pytest.mark.parametrize("make", [gpt, modern])
def test_a_network_with_a_plain_attention_generates_without_a_cache(
    make: Callable[..., nn.Module],
) -> None:
    net = make(11, 6, attention=PlainAttention)
    prompt, sampling = torch.zeros(1, 1, dtype=torch.long), SamplingSettings(max_new_tokens=8)
    assert generate(net, prompt, 6, sampling).shape == (1, 9)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (gpt, True),
        (partial(gpt, attention=MultiHeadAttention), True),
        (modern, True),
        (partial(Ensemble, net=gpt), True),
        (Bigram, False),
        (AttentionLM, False),
        (partial(gpt, attention=MeanAttention), False),
        (partial(modern, attention=SingleHeadAttention), False),
        (partial(gpt, attention=PlainAttention), False),
        (partial(modern, attention=PlainAttention), False),
        (partial(Ensemble, net=partial(gpt, attention=PlainAttention)), False),
        (partial(Ensemble, net=Bigram), False),
        (partial(Ensemble, net=partial(AttentionLM, attention=MultiHeadAttention)), False),
    ],
)
def test_a_network_takes_a_cache_if_all_its_parts_do(make: NetFactory, expected: bool) -> None:
    assert takes_cache(make(11, 6)) == expected
