"""Find, write or download the text to train on, and verify its hash."""

import contextlib
import hashlib
import os
import sys
from dataclasses import dataclass, replace
from functools import partial
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urljoin

import pooch

from lit_gpt_scratch.data.grammar import fingerprint, write_play
from lit_gpt_scratch.data.text_files import PIECE, decode
from lit_gpt_scratch.errors import InputError, require_positive
from lit_gpt_scratch.files import atomic_write, staging_dir

TINY_SHAKESPEARE = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
NAMES = ("tiny-shakespeare", "sample")
TEXT_SUFFIXES = (".txt", ".txt.gz")  # of the files of a folder
RETRIES = 2
TIMEOUT = 30  # seconds without an answer
MAX_DOWNLOAD_BYTES = 1 << 33
MAX_SAMPLE_SIZE = 10**9  # characters

CorpusName = list[str] | str  # a name, a path, a URL, or several paths


@dataclass(frozen=True)
class Corpus:
    """A text on disk."""

    name: CorpusName  # the argument (files: absolute paths); `sample` after a failed download
    path: Path  # a text in one of the encodings that `text_files` reads
    sha256: str  # of the file's bytes
    fell_back: bool = False  # whether the sample replaced a failed download


def cache_folder() -> Path:
    """Return the folder for derived files: in XDG_CACHE_HOME, or the system's own place."""
    root = os.environ.get("XDG_CACHE_HOME", "").strip()  # Windows and macOS do not know it
    return Path(root, "lit_gpt_scratch") if root else Path(pooch.os_cache("lit_gpt_scratch"))


def download_folder() -> Path:
    """Return the folder for downloads: LIT_GPT_SCRATCH_DATA, or else the cache folder."""
    return Path(os.environ.get("LIT_GPT_SCRATCH_DATA") or cache_folder()).expanduser()


def download_path(url: str) -> Path:
    """Return where the text of a URL is stored. The folder is named by a hash of the URL."""
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    return download_folder() / "urls" / name / "input.txt"


def open_corpus(
    corpus: CorpusName,
    sha256: str | None = None,
    fallback: Literal["sample"] | None = None,
    sample_size: int = 1_000_000,
) -> Corpus:
    """Find, write or download a corpus. The arguments are those of `CharDataModule`.

    Raises `InputError` if it does not exist, cannot be read or downloaded, or has another hash.
    """
    sha256 = sha256.lower() if sha256 else None
    try:
        if isinstance(corpus, list):
            path = _join(corpus)
        elif corpus == "sample":
            path = _sample(sample_size)
        elif corpus == "tiny-shakespeare":
            target = download_folder() / "tinyshakespeare" / "input.txt"
            path = _download(TINY_SHAKESPEARE, target, TINY_SHAKESPEARE_SHA256)
        elif "://" in corpus:
            if not is_allowed_url(corpus):
                rule = "only https://HOST/PATH is downloaded (or http:// from this machine)."
                raise InputError(f"corpus {corpus!r}: {rule}")
            path = _download(corpus, download_path(corpus), sha256)
        else:
            path = _local_file(corpus)
        found = pooch.file_hash(path)
    except _DownloadError as error:
        if fallback is None or sha256:  # with a hash, no other text is acceptable
            raise InputError(f"{error} Or use the built-in text: --data.corpus sample.") from error
        bar = "!" * 88
        warning = "USING THE BUILT-IN SAMPLE INSTEAD. Losses cannot be compared with Shakespeare's."
        print(f"{bar}\n!!  {error}\n!!  {warning}\n{bar}", file=sys.stderr, flush=True)
        return replace(open_corpus("sample", sample_size=sample_size), fell_back=True)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise InputError(f"corpus {corpus!r}: {error.strerror or error}{where}") from error
    except RuntimeError as error:  # expanduser raises it for an unknown user
        raise InputError(f"corpus {corpus!r}: {error}") from error
    if sha256 not in (None, found):
        raise InputError(
            f"corpus {corpus!r} has sha256 {found}, not {sha256}: it is not the text that was "
            f"asked for (or trained on). To use it anyway, pass --data.sha256 {found}."
        )
    return Corpus(absolute_name(corpus), path, found)


def absolute_name(corpus: CorpusName) -> CorpusName:
    """Return a corpus name that works from any folder: a file's absolute path, or the name."""
    if isinstance(corpus, list):
        return [str(absolute_name(part)) for part in corpus]
    if corpus not in NAMES and "://" not in corpus:
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # open_corpus reports these
            return str(Path(corpus).expanduser().resolve(strict=True))
    return corpus


def is_allowed_url(url: str, redirected_from: str | None = None) -> bool:
    """Return whether a URL may be downloaded: https, or http on this machine.

    A redirect (from the URL `redirected_from`) must not lead from another machine to this one.
    """
    from urllib3.util import parse_url  # requests connects to the host that this parser finds

    try:
        target, source = parse_url(url), parse_url(redirected_from or url)
    except ValueError:
        return False
    local = [address.host in ("localhost", "127.0.0.1", "[::1]") for address in (target, source)]
    if not target.host or local == [True, False]:
        return False
    return target.scheme == "https" or (target.scheme == "http" and local[0])


class _DownloadError(Exception):
    """A download failed; the text says which file to put where instead."""


def _local_file(corpus: str) -> Path:
    path = Path(corpus).expanduser()
    if path.is_file():
        return path.resolve()
    if path.is_dir():
        return _join([corpus])
    try:
        path.stat()  # exists() hides all other errors since Python 3.14, such as a too long name
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise InputError(
            f"corpus {corpus!r}: no such file. Give a text file's path, an https:// URL, "
            "tiny-shakespeare, or sample."
        ) from None
    raise InputError(f"corpus {corpus!r} is not a regular file: save the text in one.")


def _join(names: list[str]) -> Path:
    """Join the texts of files and of folders in one UTF-8 file of the cache, and return its path.

    The names keep their order; the files of a folder are sorted by path. If the last line of a text
    has no line end, it gets one.
    """
    paths: list[Path] = []
    for name in names:
        path = Path(name).expanduser().resolve()
        found = [p for suffix in TEXT_SUFFIXES for p in path.rglob(f"*{suffix}") if p.is_file()]
        paths += sorted(found) if path.is_dir() else [_local_file(name)]
    if not paths:
        allowed = " or ".join(TEXT_SUFFIXES)
        raise InputError(f"corpus {names} has no file whose name ends in {allowed}.")
    key = hashlib.sha256(repr(paths).encode()).hexdigest()[:16]
    joined = cache_folder() / "joined" / f"{key}.txt"
    with atomic_write(joined) as file:  # always anew: a file may have changed
        for path in paths:
            with path.open("rb") as part:
                end, chunks = "", iter(partial(part.read, PIECE), b"")
                for text in decode(chunks, str(path), str(path)):
                    file.write(text.encode())
                    end = text[-1:] or end
                file.write(b"\n" * (end not in ("", "\n")))
    return joined


def _sample(size: int) -> Path:
    require_positive(sample_size=size)
    if size > MAX_SAMPLE_SIZE:
        raise InputError(f"sample_size is {size}: it must be at most {MAX_SAMPLE_SIZE:,}.")
    path = cache_folder() / "sample" / fingerprint() / f"{size}.txt"
    if not path.exists() or path.stat().st_size != size:
        with atomic_write(path) as file:
            write_play(file, size)
    return path


def _check_redirect(response: Any, **_: Any) -> None:
    """Stop requests, which calls this for each response, from following a forbidden redirect."""
    if response.is_redirect:
        url = urljoin(response.url, response.headers["location"])
        if not is_allowed_url(url, response.url):
            raise OSError(f"it redirects to {url!r}, which is not allowed")


class _SizeLimitedFile(BufferedWriter):
    """A file that raises an error beyond MAX_DOWNLOAD_BYTES."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > MAX_DOWNLOAD_BYTES:
            raise OSError(f"it is larger than {MAX_DOWNLOAD_BYTES:,} bytes")
        return super().write(data)


def _fetch(url: str, path: str, store: Any) -> None:
    """Download a URL to a path; pooch calls this and then checks the hash."""
    download = pooch.HTTPDownloader(
        progressbar=sys.stderr.isatty(), timeout=TIMEOUT, hooks={"response": _check_redirect}
    )
    with _SizeLimitedFile(FileIO(path, "wb")) as file:
        download(url, file, store)


def _download(url: str, path: Path, sha256: str | None) -> Path:
    """Download a URL to `path`, unless a file is there: it is never replaced."""
    if path.exists():
        if sha256 and pooch.file_hash(path) != sha256:
            raise InputError(
                f"{path} exists, but it is not the file of {url} (its sha256 is not {sha256}): "
                "remove it to download it again."
            )
        return path
    with staging_dir(path) as folder:
        store = pooch.create(
            folder, base_url="", registry={path.name: sha256}, urls={path.name: url},
            retry_if_failed=RETRIES,
        )  # fmt: skip
        try:
            fetched = Path(store.fetch(path.name, downloader=_fetch))
        except (OSError, ValueError) as error:  # of requests; of pooch for a wrong hash
            cause = error.args[0] if error.args else None
            reason = " ".join(str(getattr(cause, "reason", error)).split())  # urllib3's, if any
            raise _DownloadError(
                f"Could not download {url} ({reason[:200]}). Put the file there by hand: {path}."
            ) from error
        fetched.chmod(0o644)  # readable by those who share the folder
        fetched.replace(path)
    return path
