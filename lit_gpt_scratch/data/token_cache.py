"""The token cache: encodes a corpus once and stores its ids on disk.

One folder per corpus and alphabet holds `alphabet.txt`, `tokens.npy` and `SHA256SUMS`. The sums
are checked on every use, and a damaged cache is rebuilt. Text is read in chunks, so memory does not
grow with the corpus.
"""

import hashlib
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import torch
from torch import Tensor
from tqdm import tqdm

from lit_gpt_scratch.data.corpus import Corpus, cache_folder
from lit_gpt_scratch.data.text_files import decode
from lit_gpt_scratch.data.tokenizer import CharTokenizer, code_points
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.files import staging_dir

CHUNK_BYTES = 1 << 22  # read at a time
MIN_PROGRESS_BYTES = 1 << 26  # shorter texts show no progress bar
MAX_IN_MEMORY_BYTES = 1 << 28  # larger files of ids are memory-mapped: changes of the file show
TOKENS, ALPHABET, SUMS = "tokens.npy", "alphabet.txt", "SHA256SUMS"
VERBATIM: Any = {"encoding": "utf-8", "errors": "surrogatepass", "newline": ""}  # for open()


def read_chunks(corpus: Corpus, task: str) -> Iterator[str]:
    """Yield a corpus in chunks of text; see `text_files.decode`.

    `task` labels the progress bar. Raises `InputError` if the text cannot be decoded or, at the
    end, if its hash is not `corpus.sha256`.
    """
    digest = hashlib.sha256()
    size = corpus.path.stat().st_size
    disable = True if size < MIN_PROGRESS_BYTES else None  # None: show it only on a terminal
    bar = tqdm(total=size, desc=task, unit="B", unit_scale=True, leave=False, disable=disable)
    with bar, corpus.path.open("rb") as file:

        def chunks() -> Iterator[bytes]:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                bar.update(len(chunk))
                yield chunk

        yield from decode(chunks(), f"corpus {corpus.name!r}", str(corpus.path))
    if digest.hexdigest() != corpus.sha256:
        raise InputError(f"corpus {corpus.name!r} was changed while it was read: start again.")


def load_tokens(corpus: Corpus, alphabet: str | None = None) -> tuple[str, Tensor]:
    """Return the alphabet of a corpus and its ids (N,) in the smallest integer type.

    Builds the cache if there is none. Without an `alphabet`, the corpus' own is used. Raises
    `InputError` if the text is not UTF-8, is empty, or has a character outside the alphabet.
    """
    alphabet_hash = hashlib.sha256((alphabet or "").encode("utf-8", "surrogatepass")).hexdigest()
    folder = cache_folder() / "tokens" / (corpus.sha256 + (f"-{alphabet_hash}" if alphabet else ""))
    if folder.exists():
        with suppress(Exception):  # NumPy raises many types for damaged files
            if (folder / SUMS).read_text(encoding="utf-8") == _checksums(folder):
                return _load(folder, alphabet)
        print(f"Notice: the token cache {folder} is damaged: rebuilding it.", file=sys.stderr)
    try:
        with staging_dir(folder) as staging:
            built = staging / "built"
            built.mkdir()
            _build(corpus, alphabet, built)
            loaded = _load(built, alphabet)
            with suppress(OSError):  # if another process was faster, its cache has the same bytes
                if folder.exists():
                    folder.rename(staging / "damaged")
                built.rename(folder)
    except OSError as error:
        raise InputError(
            f"corpus {corpus.name!r} cannot be encoded into {folder.parent} ({error.strerror}): "
            "name another folder with the environment variable XDG_CACHE_HOME."
        ) from error
    return loaded


def _checksums(folder: Path) -> str:
    """Return the hashes of a cache's files in the format of sha256sum."""
    return "".join(f"{pooch.file_hash(folder / name)}  {name}\n" for name in (ALPHABET, TOKENS))


def _load(folder: Path, alphabet: str | None) -> tuple[str, Tensor]:
    """Load a cache. Raise ValueError for ids outside its alphabet, or for another alphabet."""
    with (folder / ALPHABET).open(**VERBATIM) as file:
        tokenizer = CharTokenizer(file.read())
    # Mode "c" (copy on write): PyTorch warns of read-only memory. The ids are never changed.
    in_memory = (folder / TOKENS).stat().st_size <= MAX_IN_MEMORY_BYTES
    tokens = np.load(folder / TOKENS, mmap_mode=None if in_memory else "c")
    if (
        alphabet not in (None, tokenizer.alphabet)
        or (tokens.ndim, tokens.dtype) != (1, tokenizer.dtype)
        or not 0 <= tokens.min() <= tokens.max() < len(tokenizer)
    ):
        raise ValueError("its ids are not of its alphabet")
    return tokenizer.alphabet, torch.from_numpy(tokens)


def _build(corpus: Corpus, alphabet: str | None, folder: Path) -> None:
    """Read the corpus twice: for its alphabet and its length, and to encode it."""
    seen = np.zeros(0x110000, dtype=bool)  # every code point of Unicode
    count = 0
    for text in read_chunks(corpus, "reading the alphabet"):
        seen[code_points(text)] = True
        count += len(text)
    if not count:
        raise InputError(f"corpus {corpus.name!r} is empty: give a file with text in it.")
    tokenizer = CharTokenizer(alphabet or "".join(map(chr, np.flatnonzero(seen))))
    dtype = np.lib.format.dtype_to_descr(np.dtype(tokenizer.dtype))
    # Not written through a memory map: on a full disk, that kills the process instead of raising.
    with (folder / TOKENS).open("wb") as file:
        header = {"descr": dtype, "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(file, header)
        done = 0
        for text in read_chunks(corpus, "encoding"):
            file.write(tokenizer.encode_array(text, offset=done).data)
            done += len(text)
    with (folder / ALPHABET).open("w", **VERBATIM) as file:
        file.write(tokenizer.alphabet)
    (folder / SUMS).write_text(_checksums(folder), encoding="utf-8")
