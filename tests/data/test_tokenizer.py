"""Tests of `tokenizer.py`."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_gpt_scratch.data import tokenizer
from lit_gpt_scratch.data.tokenizer import CharTokenizer
from lit_gpt_scratch.errors import InputError

# All code points, with many lone surrogates, which most codecs reject.
any_text = st.lists(st.characters() | st.characters(categories=["Cs"]), min_size=1).map("".join)


@given(any_text)
def test_decode_inverts_encode(text: str) -> None:
    tok = CharTokenizer.of(text)
    assert tok.decode(tok.encode(text)) == text
    assert tok.decode(tok.encode_array(text)) == text


@pytest.mark.parametrize(
    "text", ["\0", "a\0b\0", "\ud83d\ude00", "\U0001f600 \ud83d", "\U0010ffff", "\r\n\x85\u2028"]
)
def test_decode_inverts_encode_for_unusual_characters(text: str) -> None:
    tok = CharTokenizer.of(text)
    assert tok.decode(tok.encode(text)) == text


@given(any_text)
def test_ids_are_positions_in_the_sorted_alphabet(text: str) -> None:
    tok = CharTokenizer.of(text)
    assert tok.alphabet == "".join(sorted(set(text), key=ord))
    assert tok.encode(text).tolist() == [tok.alphabet.index(character) for character in text]
    assert tok.decode(torch.arange(len(tok))) == tok.alphabet


@given(any_text, st.data())
def test_an_unknown_character_is_named_with_its_position(text: str, data: st.DataObject) -> None:
    """The first one is named, wherever the chunks begin."""
    unknown = data.draw(st.characters(exclude_categories=(), exclude_characters=set(text)))
    at, offset = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 10**12))
    tok = CharTokenizer.of(text)
    text = text[:at] + unknown + text[at:] + unknown
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "CHUNK", 3)
        with pytest.raises(InputError) as caught:
            tok.encode_array(text, offset=offset)
    for part in (repr(unknown), f"position {offset + at} ", f"{len(tok)} characters"):
        assert part in str(caught.value)


@pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
def test_ids_do_not_depend_on_the_chunk_size(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "To be, or not to be \U0001f600\n" * 4
    expected = CharTokenizer.of(text).encode(text)
    monkeypatch.setattr(tokenizer, "CHUNK", chunk)
    assert torch.equal(CharTokenizer.of(text).encode(text), expected)


@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        (1, np.uint8),
        (256, np.uint8),
        (257, np.int16),
        (1 << 15, np.int16),
        ((1 << 15) + 1, np.int32),
        (0x110000, np.int32),
    ],
)
def test_ids_have_the_smallest_sufficient_type(size: int, dtype: type) -> None:
    """The last id would wrap around in a type that is too small."""
    tok = CharTokenizer("".join(map(chr, range(size))))
    ids = tok.encode_array(tok.alphabet)
    assert ids.dtype == dtype
    assert ids[-1] == size - 1
    assert tok.encode(tok.alphabet).dtype == torch.int64


def test_an_empty_text_has_no_ids() -> None:
    tok = CharTokenizer("ab")
    assert tok.encode("").tolist() == []
    assert tok.decode(tok.encode("")) == ""


@pytest.mark.parametrize("alphabet", ["", "ba", "aa", "abb", "\U0001f600a"])
def test_an_unsorted_or_repetitive_alphabet_is_refused(alphabet: str) -> None:
    with pytest.raises(InputError, match="sorted"):
        CharTokenizer(alphabet)
