"""Reads the texts that users give: the corpus, a prompt file, standard input.

They may be in UTF-8, in UTF-16 with a byte-order mark, or in a gzip file of these. Other encodings
are refused. The message has a command that converts the file.
"""

import codecs
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from lit_gpt_scratch.errors import InputError

GZIP = b"\x1f\x8b"
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
PIECE = 1 << 22  # bytes that are decoded at a time
START = 1000  # bytes


def decode(chunks: Iterable[bytes], name: str, path: str) -> Iterator[str]:
    """Decode the bytes of a text piece by piece, with its line ends, without a byte-order mark.

    Raises `InputError` if the bytes have another encoding. The message has the name of the text.
    """
    decoder: codecs.IncrementalDecoder | None = None
    try:
        for piece in _with_start(_unzip(_with_start(chunks))):
            if decoder is None:
                is_utf_16 = piece.startswith(UTF_16)
                decoder = codecs.getincrementaldecoder("utf-16" if is_utf_16 else "utf-8-sig")()
                if not is_utf_16:
                    _refuse_zeros(piece, name, path)
            yield decoder.decode(piece)
        if decoder:
            yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(
            f"{name} is not UTF-8 text (byte 0x{byte:02x}). If it is Latin-1, convert it: "
            f"{conversion(path, 'latin-1')}"
        ) from error
    except (zlib.error, EOFError) as error:
        raise InputError(f"{name} is a damaged gzip file: {error}.") from error


def read_text(path: str, name: str) -> str:
    """Return the text of a file, or of standard input if the path is `-`."""
    data = sys.stdin.buffer.read() if path == "-" else Path(path).expanduser().read_bytes()
    return "".join(decode([data], name, path))


def conversion(path: str, encoding: str) -> str:
    """Return a command that writes a text anew, as UTF-8; it works on every system."""
    # No backslash or quotation mark: shells differ in what they make of them.
    name = Path(path).as_posix().replace("'", "\\x27")
    text = f"Path('{name}').read_bytes().decode('{encoding}')"
    return f"python -c \"from pathlib import Path; Path('utf8.txt').write_bytes({text}.encode())\""


def _refuse_zeros(piece: bytes, name: str, path: str) -> None:
    """Raise InputError for UTF-16 without a byte-order mark: most even or odd bytes are zero."""
    start = piece[:START]
    even, odd = start[::2].count(0), start[1::2].count(0)
    if len(start) >= 4 and not min(even, odd) and max(even, odd) * 4 > len(start):
        encoding = "utf-16-be" if even else "utf-16-le"
        raise InputError(
            f"{name} has a zero in every second byte, as UTF-16 without a byte-order mark. Convert "
            f"it: {conversion(path, encoding)}"
        )


def _with_start(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the chunks, but join small ones at the start until they have START bytes.

    The first bytes show the encoding, so they must come together.
    """
    start, chunks = b"", iter(chunks)
    while len(start) < START and (chunk := next(chunks, b"")):
        start += chunk
    if start:
        yield start
    yield from chunks


def _unzip(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Decompress the chunks if they are gzip, and yield pieces of at most PIECE bytes."""
    unzip = None
    is_first = True
    for chunk in chunks:
        if is_first and chunk.startswith(GZIP):
            unzip = zlib.decompressobj(zlib.MAX_WBITS | 16)  # 16: with the header of gzip
        is_first = False
        if unzip is None:
            yield chunk
            continue
        while chunk:
            if piece := unzip.decompress(chunk, PIECE):
                yield piece
            chunk = unzip.unconsumed_tail
            if unzip.eof and unzip.unused_data:  # a file may hold several in a row
                chunk = unzip.unused_data
                unzip = zlib.decompressobj(zlib.MAX_WBITS | 16)
    if unzip and not unzip.eof:
        raise EOFError("its end is missing")
