"""The token cache: a corpus encoded once.

One folder per corpus and alphabet holds `alphabet.txt`, `tokens.npy` and `SHA256SUMS`, by which
damage is noticed and mended. It is built beside its place and renamed when whole; of two processes
that build the same one, the first to finish wins. Text is read in pieces, so memory stays flat for
any size.
"""

import codecs
import hashlib
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lit_gpt_scratch.data.corpus import Corpus, cache_folder
from lit_gpt_scratch.data.tokenizer import CharTokenizer, code_points
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.files import staging_dir

PIECE = 1 << 22  # bytes read at a time
AS_IT_IS: Any = {"encoding": "utf-8", "errors": "surrogatepass", "newline": ""}
SHOW_PROGRESS_FROM = 1 << 26  # bytes
# Ids that are read into memory, where no change of the file reaches them; more are memory-mapped.
IN_MEMORY = 1 << 28  # bytes
TOKENS, ALPHABET, SUMS = "tokens.npy", "alphabet.txt", "SHA256SUMS"


def read_pieces(corpus: Corpus, doing: str, check: bool = False) -> Iterator[str]:
    """A corpus' text in pieces: line ends as they are, a byte-order mark dropped.

    Args:
        corpus: The text.
        doing: What the progress bar says.
        check: Whether to see, at the end, that it was the text that was opened.

    Raises:
        InputError: It is not UTF-8, or has changed.
    """
    read = hashlib.sha256()
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    size = corpus.path.stat().st_size
    quiet = True if size < SHOW_PROGRESS_FROM else None  # None: quiet unless on a terminal
    bar = tqdm(total=size, desc=doing, unit="B", unit_scale=True, leave=False, disable=quiet)
    with bar, corpus.path.open("rb") as file:
        while piece := file.read(PIECE):
            yield _decode(decoder, piece, corpus)
            if check:
                read.update(piece)
            bar.update(len(piece))
        yield _decode(decoder, b"", corpus)
    if check and read.hexdigest() != corpus.sha256:
        raise InputError(f"corpus {corpus.name!r} was changed while it was read: start again.")


def _decode(decoder: codecs.IncrementalDecoder, piece: bytes, corpus: Corpus) -> str:
    try:
        return decoder.decode(piece, final=not piece)
    except UnicodeDecodeError as error:
        bad = error.object[error.start]
        raise InputError(
            f"corpus {corpus.name!r} is not UTF-8 (byte 0x{bad:02x}): convert it, "
            "for example with iconv -t UTF-8."
        ) from error


def scan(corpus: Corpus) -> tuple[str, int]:
    """The alphabet of a corpus and its number of characters."""
    seen = np.zeros(0x110000, dtype=bool)
    count = 0
    for text in read_pieces(corpus, "reading the alphabet"):
        seen[code_points(text)] = True
        count += len(text)
    return "".join(map(chr, np.flatnonzero(seen))), count


def load_tokens(corpus: Corpus, alphabet: str | None = None) -> tuple[str, Tensor]:
    """A corpus as ids, from the cache or into it.

    Args:
        corpus: The text.
        alphabet: The characters to encode with; None: the corpus' own.

    Returns:
        The alphabet, and the ids (N,) in the smallest integer type.

    Raises:
        InputError: The text is not UTF-8, is empty, or has a character outside the alphabet.
    """
    of_alphabet = hashlib.sha256((alphabet or "").encode("utf-8", "surrogatepass")).hexdigest()
    folder = cache_folder() / "tokens" / (corpus.sha256 + (f"-{of_alphabet}" if alphabet else ""))
    if folder.exists():
        try:
            return _open(folder, alphabet)
        except Exception:  # by a full disk or a power cut, say; NumPy fails in many ways
            print(f"Notice: the token cache {folder} is damaged: made again.", file=sys.stderr)
    try:
        with staging_dir(folder) as making:
            built = making / "built"
            built.mkdir()
            _build(corpus, alphabet, built)
            found = _load(built, alphabet)
            with suppress(OSError):  # another process may do the same, with the same bytes
                if folder.exists():
                    folder.rename(making / "before")
                built.rename(folder)
    except OSError as error:
        raise InputError(
            f"corpus {corpus.name!r} cannot be encoded into {folder.parent} ({error.strerror}): "
            "name another folder with the environment variable XDG_CACHE_HOME."
        ) from error
    return found


def _sums(folder: Path) -> str:
    """The hashes of a cache's files, as sha256sum writes and checks them."""
    lines = []
    for name in (ALPHABET, TOKENS):
        with (folder / name).open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return "".join(lines)


def _open(folder: Path, alphabet: str | None) -> tuple[str, Tensor]:
    """A cache that is what was written."""
    if (folder / SUMS).read_text() != _sums(folder):
        raise ValueError("its files are not those that were written")
    return _load(folder, alphabet)


def _load(folder: Path, alphabet: str | None) -> tuple[str, Tensor]:
    """A cache whose ids are of its alphabet, which is the one asked for."""
    with (folder / ALPHABET).open(**AS_IT_IS) as file:
        tokenizer = CharTokenizer(file.read())
    # Mode "c" (copy on write) only because PyTorch warns of read-only memory; nobody writes.
    small = (folder / TOKENS).stat().st_size <= IN_MEMORY
    tokens = np.load(folder / TOKENS, mmap_mode=None if small else "c")
    if (
        alphabet not in (None, tokenizer.alphabet)
        or (tokens.ndim, tokens.dtype) != (1, tokenizer.dtype)
        or not 0 <= tokens.min() <= tokens.max() < len(tokenizer)
    ):
        raise ValueError("its ids are not of its alphabet")
    return tokenizer.alphabet, torch.from_numpy(tokens)


def _build(corpus: Corpus, alphabet: str | None, folder: Path) -> None:
    own, count = scan(corpus)
    if not count:
        raise InputError(f"corpus {corpus.name!r} is empty: there is nothing to learn from.")
    tokenizer = CharTokenizer(alphabet or own)
    descr = np.lib.format.dtype_to_descr(np.dtype(tokenizer.dtype))
    done = 0
    # Written, not mapped: a full disk is then an error, where it would be the process' end.
    with (folder / TOKENS).open("wb") as file:
        header = {"descr": descr, "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(file, header)
        for text in read_pieces(corpus, "encoding", check=True):
            file.write(tokenizer.encode_array(text, offset=done).data)
            done += len(text)
    with (folder / ALPHABET).open("w", **AS_IT_IS) as file:
        file.write(tokenizer.alphabet)
    (folder / SUMS).write_text(_sums(folder))
