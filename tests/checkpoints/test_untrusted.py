"""Tests of `untrusted.py` on values in memory; test_reading.py and test_hostile.py use files."""

from collections import OrderedDict
from typing import Any

import pytest
import torch

from lit_gpt_scratch.checkpoints.untrusted import MAX_DEPTH, require_plain


def nest(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("key", [(1, 2), 1.5, None, b"x", True])
def test_dictionary_keys_other_than_texts_and_integers_are_refused(key: Any) -> None:
    with pytest.raises(ValueError, match="keys"):
        require_plain({"a": [{key: 1}]}, size=0)
    require_plain({"a": [{"b": 1, 2: None}]}, size=0)


def test_only_pytorchs_attribute_of_a_dictionary_is_accepted() -> None:
    weights: Any = OrderedDict(a=torch.ones(2))
    weights._metadata = {}
    require_plain(weights, size=2)
    weights.other = 1
    with pytest.raises(ValueError, match="attributes"):
        require_plain(weights, size=2)


def test_tensors_must_not_be_larger_than_the_file() -> None:
    require_plain([torch.ones(3), torch.ones(4)], size=7)
    for value, size in (([torch.ones(3), torch.ones(5)], 7), (torch.ones(0), -1)):
        with pytest.raises(ValueError, match="tensors"):
            require_plain(value, size)


def test_nesting_is_limited() -> None:
    require_plain(nest(MAX_DEPTH), size=0)
    with pytest.raises(ValueError, match="too deep"):
        require_plain(nest(MAX_DEPTH + 1), size=0)
