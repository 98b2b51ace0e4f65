"""Characters to ids and back."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_gpt_scratch.errors import InputError

CHUNK = 1 << 15  # characters encoded at a time: what a core's cache holds of all the steps


def code_points(text: str) -> NDArray[np.uint32]:
    """The Unicode code points of a text, lone surrogates included."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


class CharTokenizer:
    """A bijection between the characters of an alphabet and the ids 0..V-1.

    Args:
        alphabet: The characters, each once, sorted by code point.

    Raises:
        InputError: The alphabet is empty, unsorted, or has a character twice.
    """

    def __init__(self, alphabet: str) -> None:
        codes = code_points(alphabet)
        if not len(codes) or not (np.diff(codes.astype(np.int64)) > 0).all():
            raise InputError(f"alphabet {alphabet[:20]!r}: it must be sorted, each character once.")
        self.alphabet = alphabet
        self._codes = codes
        # One look-up a character; -1 marks those outside. At most 4 MiB, for a rare code point.
        self._ids = np.full(int(codes[-1]) + 2, -1, dtype=np.int32)
        self._ids[codes] = np.arange(len(codes))

    @classmethod
    def of(cls, text: str) -> "CharTokenizer":
        """The tokenizer of all characters of a text."""
        return cls("".join(sorted(set(text))))

    def __len__(self) -> int:
        return len(self.alphabet)

    @property
    def dtype(self) -> type[np.signedinteger | np.unsignedinteger]:
        """The smallest integer type that holds every id and that PyTorch computes with."""
        return np.uint8 if len(self) <= 1 << 8 else np.int16 if len(self) <= 1 << 15 else np.int32

    def encode_array(self, text: str, offset: int = 0) -> NDArray[np.integer]:
        """Ids (T,) of a text in the smallest type; errors count positions from `offset`.

        Raises:
            InputError: A character is not in the alphabet.
        """
        ids = np.empty(len(text), dtype=self.dtype)
        for start in range(0, len(text), CHUNK):
            codes = code_points(text[start : start + CHUNK])
            # A code point above the last character's is clipped to the table's end, which is -1.
            found = self._ids.take(codes, mode="clip")
            if found.min() < 0:
                at = start + int(np.argmin(found))
                raise InputError(
                    f"character {text[at]!r} at position {offset + at} is not in the alphabet of "
                    f"{len(self)} characters: remove it, or train on a corpus that has it."
                )
            ids[start : start + CHUNK] = found
        return ids

    def encode(self, text: str) -> Tensor:
        """Ids (T,) int64 of a text, ready for a network. Raises as `encode_array`."""
        return torch.from_numpy(self.encode_array(text)).long()

    def decode(self, ids: Tensor | NDArray[np.integer]) -> str:
        """The text of ids (T,)."""
        codes: NDArray[np.uint32] = self._codes[np.asarray(ids)]
        return codes.tobytes().decode("utf-32-le", "surrogatepass")
