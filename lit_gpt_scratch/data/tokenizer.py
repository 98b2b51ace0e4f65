"""`CharTokenizer`: characters to ids and back."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_gpt_scratch.errors import InputError

CHUNK = 1 << 15  # characters encoded at a time, so that intermediate arrays fit a core's cache


def code_points(text: str) -> NDArray[np.uint32]:
    """Return the Unicode code points of a text, lone surrogates included."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


class CharTokenizer:
    """A bijection between the characters of an alphabet and the ids 0..V-1.

    Raises `InputError` unless the alphabet is sorted by code point, with each character once.
    """

    def __init__(self, alphabet: str) -> None:
        codes = code_points(alphabet)
        if not len(codes) or not (np.diff(codes.astype(np.int64)) > 0).all():
            raise InputError(f"alphabet {alphabet[:20]!r}: it must be sorted, each character once.")
        self.alphabet, self._codes = alphabet, codes
        # Id of each code point; -1 if it is not in the alphabet. At most 4 MiB.
        self._ids = np.full(int(codes[-1]) + 2, -1, dtype=np.int32)
        self._ids[codes] = np.arange(len(codes))

    @classmethod
    def of(cls, text: str) -> "CharTokenizer":
        """Return the tokenizer of all characters of a text."""
        return cls("".join(sorted(set(text))))

    def __len__(self) -> int:
        return len(self.alphabet)

    @property
    def dtype(self) -> type[np.signedinteger | np.unsignedinteger]:
        """The smallest integer type that holds every id and that PyTorch computes with."""
        return np.uint8 if len(self) <= 1 << 8 else np.int16 if len(self) <= 1 << 15 else np.int32

    def encode_array(self, text: str, offset: int = 0) -> NDArray[np.integer]:
        """Return ids (T,) of type `dtype`.

        Raises `InputError` for a character outside the alphabet; positions count from `offset`.
        """
        ids = np.empty(len(text), dtype=self.dtype)
        for start in range(0, len(text), CHUNK):
            codes = code_points(text[start : start + CHUNK])
            # Larger code points than the alphabet's are clipped to the last entry, which is -1.
            found = self._ids.take(codes, mode="clip")
            if found.min() < 0:
                i = start + int(np.argmin(found))
                raise InputError(
                    f"character {text[i]!r} at position {offset + i} is not in the alphabet of "
                    f"{len(self)} characters: remove it, or train on a corpus that has it."
                )
            ids[start : start + CHUNK] = found
        return ids

    def encode(self, text: str) -> Tensor:
        """Return ids (T,) int64 for a network. Raise as `encode_array`."""
        return torch.from_numpy(self.encode_array(text)).long()

    def decode(self, ids: Tensor | NDArray[np.integer]) -> str:
        """Return the text of ids (T,)."""
        codes: NDArray[np.uint32] = self._codes[np.asarray(ids)]
        return codes.tobytes().decode("utf-32-le", "surrogatepass")
