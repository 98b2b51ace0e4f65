"""Where text comes from: a name, a path, a URL, or the built-in sample. Verified and cached."""

import contextlib
import hashlib
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal
from urllib.parse import urljoin

import pooch

from lit_gpt_scratch.data.grammar import fingerprint, write_play
from lit_gpt_scratch.errors import InputError, require_positive
from lit_gpt_scratch.files import atomic_write, staging_dir

TINY_SHAKESPEARE = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
NAMES = ("tiny-shakespeare", "sample")
RETRIES = 2
TIMEOUT = 30  # seconds without an answer
MOST_BYTES = 1 << 33  # of a download
MOST_SAMPLE = 10**9  # characters


@dataclass(frozen=True)
class Corpus:
    """A text on disk.

    Attributes:
        name: What was asked for, a file by its absolute path; `sample` where that replaced it.
        path: The file, UTF-8.
        sha256: Of the file's bytes.
        fell_back: Whether the sample replaced a failed download.
    """

    name: str
    path: Path
    sha256: str
    fell_back: bool = False


def cache_folder() -> Path:
    """Where derived files go: the platform's cache folder (on Linux under XDG_CACHE_HOME)."""
    return Path(pooch.os_cache("lit_gpt_scratch"))


def download_folder() -> Path:
    """Where downloads go: LIT_GPT_SCRATCH_DATA, or the cache folder."""
    return Path(os.environ.get("LIT_GPT_SCRATCH_DATA") or cache_folder()).expanduser()


def place_of(url: str) -> Path:
    """Where the text of a URL is kept once it is downloaded."""
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    return download_folder() / "urls" / name / "input.txt"


def open_corpus(
    corpus: str,
    sha256: str | None = None,
    fallback: Literal["sample"] | None = None,
    sample_size: int = 1_000_000,
) -> Corpus:
    """Find, make or download a corpus.

    Args:
        corpus: `tiny-shakespeare`, `sample`, a file's path, or an https:// URL (http on loopback).
        sha256: What the file must hash to; None accepts any (Tiny Shakespeare's is known).
        fallback: `sample`: use it when a download fails. None: a failed download is an error.
        sample_size: Characters of the sample.

    Raises:
        InputError: No such corpus, it cannot be read or downloaded, or its hash is another.
    """
    sha256 = sha256.lower() if sha256 else None
    try:
        if corpus == "sample":
            path = _sample(sample_size)
        elif corpus == "tiny-shakespeare":
            target = download_folder() / "tinyshakespeare" / "input.txt"
            path = _download(TINY_SHAKESPEARE, target, TINY_SHAKESPEARE_SHA256)
        elif "://" in corpus:
            if not may_download(corpus):
                raise InputError(
                    f"corpus {corpus!r}: only https://HOST/PATH is downloaded (or http:// from "
                    "this machine)."
                )
            path = _download(corpus, place_of(corpus), sha256)
        else:
            path = _local(corpus)
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except _DownloadError as error:
        if fallback is None or sha256:  # a hash says that no other text will do
            raise InputError(f"{error} Or use the built-in text: --data.corpus sample.") from error
        _say_loudly(f"{error}", "USING THE BUILT-IN SAMPLE INSTEAD. No figure is Shakespeare's.")
        found_sample = open_corpus("sample", sample_size=sample_size)
        return replace(found_sample, fell_back=True)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise InputError(f"corpus {corpus!r}: {error.strerror or error}{where}") from error
    if sha256 not in (None, found):
        raise InputError(
            f"corpus {corpus!r} has sha256 {found}, not {sha256}: it is not the text that was "
            f"asked for (or trained on). To use it all the same, pass --data.sha256 {found}."
        )
    return Corpus(absolute(corpus), path, found)


def absolute(corpus: str) -> str:
    """The name of a corpus that holds in every folder: a file's absolute path, others as is."""
    if corpus in NAMES or "://" in corpus:
        return corpus
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # no such file: said elsewhere
        return str(Path(corpus).expanduser().resolve(strict=True))
    return corpus


class _DownloadError(Exception):
    """A download failed; the text says which file to put where instead."""


def _local(corpus: str) -> Path:
    try:
        path = Path(corpus).expanduser()
    except RuntimeError as error:
        raise InputError(f"corpus {corpus!r}: {error}") from error
    if path.is_dir():
        raise InputError(f"corpus {corpus!r} is a folder: name one text file in it.")
    if not path.exists():
        raise InputError(
            f"corpus {corpus!r}: no such file. Give a text file's path, an https:// URL, "
            "tiny-shakespeare, or sample."
        )
    if not path.is_file():
        raise InputError(f"corpus {corpus!r} is not a file: save the text in one.")
    return path.resolve()


def _sample(size: int) -> Path:
    require_positive(sample_size=size)
    if size > MOST_SAMPLE:
        raise InputError(f"sample_size is {size}: it must be at most {MOST_SAMPLE:,}.")
    path = cache_folder() / "sample" / fingerprint() / f"{size}.txt"
    if not path.exists() or path.stat().st_size != size:
        with atomic_write(path) as file:
            write_play(file, size)
    return path


def may_download(url: str, come_from: str | None = None) -> bool:
    """Whether a URL is https, or http within this machine; none leads there from outside.

    Args:
        url: Of a text.
        come_from: What redirects to it.
    """
    from urllib3.util import parse_url  # as requests reads it, which is what counts

    try:
        to, before = parse_url(url), parse_url(come_from or url)
    except ValueError:
        return False
    inside = [address.host in ("localhost", "127.0.0.1", "[::1]") for address in (to, before)]
    if not to.host or inside == [True, False]:
        return False
    return to.scheme == "https" or (to.scheme == "http" and inside[0])


def _check_redirect(response: Any, **_: Any) -> None:
    """For requests, which would follow from https to http."""
    if response.is_redirect:
        url = urljoin(response.url, response.headers["location"])
        if not may_download(url, response.url):
            raise OSError(f"it leads to {url!r}, which is not allowed")


class _Bounded:
    """A file that takes only so many bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.left = file, MOST_BYTES

    def write(self, data: bytes) -> None:
        self.left -= len(data)
        if self.left < 0:
            raise OSError(f"it is larger than {MOST_BYTES:,} bytes")
        self.file.write(data)

    def flush(self) -> None:
        """When it is closed."""


def _fetch(url: str, path: str, store: Any) -> None:
    """Download for pooch, into a file of its naming."""
    download = pooch.HTTPDownloader(
        progressbar=sys.stderr.isatty(), timeout=TIMEOUT, hooks={"response": _check_redirect}
    )
    with Path(path).open("wb") as file:
        download(url, _Bounded(file), store)


def _download(url: str, path: Path, sha256: str | None) -> Path:
    """The file at `path`, downloaded if it is not there. Never replaces a file that is."""
    known = f"sha256:{sha256}" if sha256 else None
    if path.exists():
        if known and not pooch.hashes.hash_matches(path, known):
            raise InputError(
                f"{path} is there, but it is not the file of {url} (its sha256 is not {sha256}): "
                "remove it, and it is downloaded again."
            )
        return path
    with staging_dir(path) as folder:
        store = pooch.create(
            folder, base_url="", registry={path.name: known}, urls={path.name: url},
            retry_if_failed=RETRIES,
        )  # fmt: skip
        try:
            fetched = Path(store.fetch(path.name, downloader=_fetch))
        except (OSError, ValueError) as error:
            # requests' errors are OSErrors, a wrong hash is a ValueError.
            first = error.args[0] if error.args else None
            reason = " ".join(str(getattr(first, "reason", error)).split())  # urllib3's, inside
            raise _DownloadError(
                f"Could not download {url} ({reason[:200]}). Put the file there by hand: {path}."
            ) from error
        fetched.chmod(0o644)  # readable to those who share the folder
        fetched.replace(path)
    return path


def _say_loudly(*lines: str) -> None:
    bar = "!" * 88
    print(bar, *(f"!!  {line}" for line in lines), bar, sep="\n", file=sys.stderr, flush=True)
