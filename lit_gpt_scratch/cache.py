"""The token cache: a corpus encoded once, memory-mapped ever after.

One folder per corpus and alphabet holds `alphabet.txt` and `tokens.npy`. It is built under a
temporary name and renamed when whole; of two processes that build the same one, the first to finish
wins and the other uses its result. Text is read in pieces, so memory stays flat for any size.
"""

import codecs
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lit_gpt_scratch.corpus import Corpus, cache_folder
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.tokenizer import CharTokenizer, code_points

PIECE = 1 << 22  # bytes read at a time
AS_IT_IS: Any = {"encoding": "utf-8", "errors": "surrogatepass", "newline": ""}
SHOW_PROGRESS_FROM = 1 << 26  # bytes


def read_pieces(corpus: Corpus, doing: str) -> Iterator[str]:
    """A corpus' text in pieces: line ends as they are, a byte-order mark dropped.

    Raises:
        InputError: It is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    size = corpus.path.stat().st_size
    quiet = True if size < SHOW_PROGRESS_FROM else None  # None: quiet unless on a terminal
    bar = tqdm(total=size, desc=doing, unit="B", unit_scale=True, leave=False, disable=quiet)
    with bar, corpus.path.open("rb") as file:
        while piece := file.read(PIECE):
            yield _decode(decoder, piece, corpus)
            bar.update(len(piece))
        yield _decode(decoder, b"", corpus)


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
        The alphabet, and the ids (N,) in the smallest integer type, memory-mapped.

    Raises:
        InputError: The text is not UTF-8, is empty, or has a character outside the alphabet.
    """
    of_alphabet = hashlib.sha256((alphabet or "").encode("utf-8", "surrogatepass")).hexdigest()
    folder = cache_folder() / "tokens" / (corpus.sha256 + (f"-{of_alphabet}" if alphabet else ""))
    if not folder.exists():
        _build_whole(corpus, alphabet, folder)
    try:
        return _open(folder)
    except (OSError, ValueError, EOFError):  # damaged: by a full disk or a power cut, say
        shutil.rmtree(folder)
        _build_whole(corpus, alphabet, folder)
        return _open(folder)


def _open(folder: Path) -> tuple[str, Tensor]:
    # Mode "c" (copy on write) only because PyTorch warns of read-only memory; nobody writes.
    tokens = np.load(folder / "tokens.npy", mmap_mode="c")
    with (folder / "alphabet.txt").open(**AS_IT_IS) as file:
        return file.read(), torch.from_numpy(tokens)


def _build_whole(corpus: Corpus, alphabet: str | None, folder: Path) -> None:
    """Build beside the folder and rename: it is there whole, or not at all."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".building-"))
    except OSError as error:
        raise InputError(
            f"cache folder {folder.parent} cannot be written ({error.strerror}): name another "
            "with the environment variable XDG_CACHE_HOME."
        ) from error
    try:
        _build(corpus, alphabet, building)
        building.chmod(0o755)  # readable to those who share the folder
        try:
            building.rename(folder)
        except OSError:  # another process was first; ours holds the same bytes
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _build(corpus: Corpus, alphabet: str | None, folder: Path) -> None:
    own, count = scan(corpus)
    if not count:
        raise InputError(f"corpus {corpus.name!r} is empty: there is nothing to learn from.")
    tokenizer = CharTokenizer(alphabet or own)
    tokens = np.lib.format.open_memmap(
        folder / "tokens.npy", mode="w+", dtype=tokenizer.dtype, shape=(count,)
    )
    done = 0
    for text in read_pieces(corpus, "encoding"):
        tokens[done : done + len(text)] = tokenizer.encode_array(text, offset=done)
        done += len(text)
    tokens.flush()
    with (folder / "alphabet.txt").open("w", **AS_IT_IS) as file:
        file.write(tokenizer.alphabet)
