"""Tests of `corpus.py`. A local web server stands in for the internet."""

import hashlib
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_gpt_scratch.data import corpus
from lit_gpt_scratch.data.corpus import cache_folder, open_corpus
from lit_gpt_scratch.errors import InputError

TEXT = "".join(f"SPEAKER {i}:\nA line of this play.\n\n" for i in range(1000)).encode()
SHA256 = hashlib.sha256(TEXT).hexdigest()


@dataclass
class Page:
    body: bytes
    status: int = 200
    content_length: int | None = None  # if it is not the body's
    location: str | None = None  # target of a redirect


FAILURES = {
    "wrong text": Page(TEXT.upper()),
    "truncated text": Page(TEXT[:100], content_length=len(TEXT)),
    "not found": Page(b"404: Not Found", status=404),
    "server error": Page(b"", status=500),
    "no answer": None,
}
each_failure = pytest.mark.parametrize("page", FAILURES.values(), ids=FAILURES)


@dataclass
class Site:
    """A web server that answers with `pages` in order, and then repeats the last one."""

    server: ThreadingHTTPServer
    pages: list[Page | None] = field(default_factory=lambda: [Page(TEXT)])
    requests: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/input.txt"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.requests.append(request.path)
        page = self.pages.pop(0) if len(self.pages) > 1 else self.pages[0]
        if page is not None:  # None: close the connection without an answer
            request.send_response(page.status)
            request.send_header("Content-Length", str(page.content_length or len(page.body)))
            if page.location:
                request.send_header("Location", page.location)
            request.end_headers()
            request.wfile.write(page.body)


@pytest.fixture
def site() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.answer(self)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served = Site(server)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        server.shutdown()
        thread.join()


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for downloads, and no retries."""
    monkeypatch.setenv("LIT_GPT_SCRATCH_DATA", str(tmp_path))
    monkeypatch.setattr(corpus, "RETRIES", 0)
    return tmp_path


@pytest.fixture
def play(site: Site, data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Serve Tiny Shakespeare from the local server; return the path it is downloaded to."""
    monkeypatch.setattr(corpus, "TINY_SHAKESPEARE", site.url)
    monkeypatch.setattr(corpus, "TINY_SHAKESPEARE_SHA256", SHA256)
    return data / "tinyshakespeare" / "input.txt"


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def error_of(*args: Any, **options: Any) -> str:
    """Return the error message, which must be one line."""
    with pytest.raises(InputError) as caught:
        open_corpus(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_text_is_downloaded_once_and_complete(play: Path, site: Site) -> None:
    first, second = open_corpus("tiny-shakespeare"), open_corpus("tiny-shakespeare")
    assert first == second == corpus.Corpus("tiny-shakespeare", play, SHA256)
    assert play.read_bytes() == TEXT
    assert len(site.requests) == 1
    assert files_in(play.parent) == [play]


@each_failure
def test_a_failed_download_suggests_both_alternatives_and_leaves_no_files(
    play: Path, data: Path, site: Site, page: Page | None
) -> None:
    site.pages = [page]
    error = error_of("tiny-shakespeare")
    assert str(play) in error
    assert "--data.corpus sample" in error
    assert files_in(data) == []


@each_failure
@pytest.mark.usefixtures("play")
def test_a_download_works_after_a_failed_one(site: Site, page: Page | None) -> None:
    site.pages = [page, Page(TEXT)]
    error_of("tiny-shakespeare")
    assert open_corpus("tiny-shakespeare").path.read_bytes() == TEXT


@pytest.mark.usefixtures("play")
def test_a_failed_download_is_retried(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "RETRIES", 1)
    site.pages = [Page(TEXT[:100], content_length=len(TEXT)), Page(TEXT)]
    assert open_corpus("tiny-shakespeare").path.read_bytes() == TEXT


@each_failure
def test_a_failed_download_falls_back_to_the_sample_with_a_warning(
    play: Path, data: Path, site: Site, page: Page | None, capsys: pytest.CaptureFixture[str]
) -> None:
    site.pages = [page]
    found = open_corpus("tiny-shakespeare", fallback="sample", sample_size=500)
    assert found.fell_back
    assert found.name == "sample"
    assert found.path == open_corpus("sample", sample_size=500).path
    assert files_in(data) == []
    printed = capsys.readouterr()
    assert "USING THE BUILT-IN SAMPLE INSTEAD" in printed.err
    assert str(play) in printed.err
    assert printed.out == ""


@pytest.mark.usefixtures("play")
def test_no_fallback_with_a_given_hash(site: Site) -> None:
    """Such as a checkpoint's: no other text is acceptable."""
    site.pages = [None]
    assert "Could not download" in error_of("tiny-shakespeare", SHA256, fallback="sample")


def test_no_fallback_after_a_successful_download(
    play: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = open_corpus("tiny-shakespeare", fallback="sample")
    assert (found.name, found.path, found.fell_back) == ("tiny-shakespeare", play, False)
    assert "SAMPLE" not in capsys.readouterr().err


def test_no_fallback_for_a_missing_or_wrong_file(play: Path, tmp_path: Path) -> None:
    assert "no such file" in error_of(str(tmp_path / "typo.txt"), fallback="sample")
    play.parent.mkdir()
    play.write_bytes(b"another text")
    assert "sha256" in error_of("tiny-shakespeare", fallback="sample")


def test_a_file_placed_by_hand_is_used_without_a_download(play: Path, site: Site) -> None:
    play.parent.mkdir()
    play.write_bytes(TEXT)
    site.pages = [None]
    assert open_corpus("tiny-shakespeare").sha256 == SHA256
    assert site.requests == []


def test_a_wrong_file_placed_by_hand_is_refused_and_kept(play: Path, site: Site) -> None:
    play.parent.mkdir()
    play.write_bytes(b"the user's only copy of another text")
    error = error_of("tiny-shakespeare")
    assert str(play) in error
    assert SHA256 in error
    assert play.read_bytes() == b"the user's only copy of another text"
    assert site.requests == []


def test_an_empty_environment_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_GPT_SCRATCH_DATA", "")
    assert corpus.download_folder() == corpus.cache_folder()


@pytest.mark.usefixtures("play")
def test_a_download_folder_that_cannot_be_written_is_refused(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blocker = tmp_path / "a file, not a folder"
    blocker.touch()
    monkeypatch.setenv("LIT_GPT_SCRATCH_DATA", str(blocker))
    assert str(blocker) in error_of("tiny-shakespeare")
    assert site.requests == []


def test_tiny_shakespeare_has_its_known_hash_and_size(
    shakespeare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIT_GPT_SCRATCH_DATA", str(shakespeare))
    found = open_corpus("tiny-shakespeare")
    assert found.sha256 == corpus.TINY_SHAKESPEARE_SHA256
    assert found.path.stat().st_size == 1_115_394


@pytest.mark.parametrize(
    "url",
    [
        "http://example.invalid/a.txt",
        "http://localhost.example.invalid/a.txt",
        "http://127.0.0.1@example.invalid/a.txt",
        "http://example.invalid#127.0.0.1/a.txt",
        "ftp://localhost/a.txt",
        "file:///a.txt",
        "s3://bucket/a.txt",
    ],
)
@pytest.mark.usefixtures("data")
def test_other_machines_are_read_over_https_only(url: str) -> None:
    error = error_of(url)
    assert "only https://" in error
    assert url in error


@pytest.mark.parametrize(
    ("url", "redirected_from", "allowed"),
    [
        ("https://a.org/b", "https://c.org", True),
        ("https://a.org/b", "http://127.0.0.1/c", True),
        ("http://localhost/b", "http://127.0.0.1:80/c", True),
        ("http://a.org/b", "https://a.org/b", False),
        ("http://127.0.0.1/b", "https://a.org/b", False),
        ("https://[::1]/b", "https://a.org/b", False),
        (
            "http://a.org\\@127.0.0.1/",
            "http://127.0.0.1/",
            False,
        ),  # some parsers take 127.0.0.1 for the host
        ("http://127.0.0.1@a.org/", "http://127.0.0.1/", False),
        ("ftp://127.0.0.1/", "http://127.0.0.1/", False),
        ("file:///etc/passwd", "https://a.org", False),
        ("https://a.org:notaport/", "https://a.org", False),
    ],
)
def test_no_redirect_leads_to_plain_http_elsewhere_or_from_outside_to_this_machine(
    url: str, redirected_from: str, allowed: bool
) -> None:
    assert corpus.is_allowed_url(url, redirected_from) == allowed


@given(st.text())
def test_every_url_is_stored_inside_the_download_folder(name: str) -> None:
    path = corpus.download_path(f"https://a.org/{name}")
    assert path.resolve().parents[2] == corpus.download_folder().resolve()
    assert re.fullmatch("[0-9a-f]{16}", path.parent.name)
    assert path.name == "input.txt"


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("where", ["http://192.0.2.1/", "//192.0.2.1/a", "ftp://127.0.0.1/"])
def test_a_redirect_away_from_https_is_refused(site: Site, where: str) -> None:
    site.pages = [Page(b"", status=302, location=where)]
    assert "not allowed" in error_of(site.url)
    assert site.requests == ["/input.txt"]


@pytest.mark.usefixtures("data")
def test_a_redirect_within_this_machine_is_followed(site: Site) -> None:
    site.pages = [Page(b"", status=302, location="/other"), Page(TEXT)]
    assert open_corpus(site.url).sha256 == SHA256
    assert site.requests == ["/input.txt", "/other"]


def test_a_too_large_download_is_stopped_and_leaves_no_files(
    site: Site, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "MAX_DOWNLOAD_BYTES", len(TEXT) - 1)
    assert f"larger than {len(TEXT) - 1:,} bytes" in error_of(site.url)
    assert len(site.requests) == 1  # retrying would not make it smaller
    assert files_in(data) == []


@pytest.mark.parametrize("url", ["https://", "https://[", "https:///a.txt"])
def test_a_malformed_url_is_refused(url: str, data: Path) -> None:
    assert url in error_of(url)
    assert files_in(data) == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("sha256", [None, SHA256])
def test_a_url_is_downloaded_once(site: Site, data: Path, host: str, sha256: str | None) -> None:
    url = site.url.replace("127.0.0.1", host)
    first, second = open_corpus(url, sha256), open_corpus(url, sha256)
    assert first == second
    assert (first.name, first.sha256) == (url, SHA256)
    assert first.path.read_bytes() == TEXT
    assert len(site.requests) == 1
    assert files_in(data) == [first.path]


@pytest.mark.usefixtures("data")
def test_two_urls_are_stored_in_two_files(site: Site) -> None:
    """Even if the last part of the URL, from which browsers take the file name, is the same."""
    site.pages = [Page(b"one"), Page(b"two")]
    first, second = open_corpus(site.url), open_corpus(site.url.replace("/input", "/b/input"))
    assert (first.path.read_bytes(), second.path.read_bytes()) == (b"one", b"two")


def test_a_download_with_a_wrong_hash_is_refused_and_leaves_no_files(
    site: Site, data: Path
) -> None:
    error = error_of(site.url, sha256="0" * 64)
    assert site.url in error
    assert files_in(data) == []


@pytest.mark.usefixtures("data")
def test_the_hash_of_an_earlier_download_is_checked(site: Site) -> None:
    path = open_corpus(site.url).path
    error = error_of(site.url, sha256="0" * 64)
    assert str(path) in error
    assert path.read_bytes() == TEXT


@pytest.mark.parametrize("failure", [failure for failure in FAILURES if failure != "wrong text"])
def test_a_failed_download_without_a_hash_is_refused(site: Site, data: Path, failure: str) -> None:
    """Only the server's Content-Length reveals that the text is truncated."""
    site.pages = [FAILURES[failure]]
    error = error_of(site.url)
    assert site.url in error
    assert "--data.corpus sample" in error
    assert files_in(data) == []


def test_a_local_file_is_used_in_place_and_named_by_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint stores the absolute path, so it works from any folder."""
    path = tmp_path / "a text.txt"
    path.write_bytes(TEXT)
    found = open_corpus(str(path))
    assert found == corpus.Corpus(str(path), path, SHA256)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_corpus("a text.txt") == open_corpus("~/a text.txt") == found


@pytest.mark.usefixtures("play")
@pytest.mark.parametrize("name", ["sample", "tiny-shakespeare"])
def test_corpus_names_take_precedence_over_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(b"another text")
    monkeypatch.chdir(tmp_path)
    found = open_corpus(name)
    assert found.name == name
    assert found.path.read_bytes() != b"another text"


@pytest.mark.needs("unix", "pipes with a name")
def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in error_of(str(tmp_path / "pipe"))


def test_a_truncated_sample_is_rewritten() -> None:
    path = open_corpus("sample", sample_size=321).path
    original = path.read_bytes()
    path.write_bytes(original[:100])
    assert open_corpus("sample", sample_size=321).path.read_bytes() == original


@pytest.mark.parametrize("name", ["missing.txt", "a text.txt/below", "nul\0byte"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a text.txt").write_bytes(TEXT)
    error = error_of(str(tmp_path / name))
    assert repr(str(tmp_path / name)) in error
    assert "tiny-shakespeare" in error


def test_an_unknown_home_folder_is_refused() -> None:
    assert "~nobody-of-this-name" in error_of("~nobody-of-this-name/a text.txt")


def test_a_too_long_path_is_refused(tmp_path: Path) -> None:
    """As when someone pastes a text instead of its path."""
    assert "too long" in error_of(str(tmp_path / ("word " * 100)))


@pytest.mark.needs("linux", "/proc")
def test_a_read_error_is_refused() -> None:
    """Opening this file works, but reading it fails."""
    error = error_of("/proc/self/mem")
    assert "/proc/self/mem" in error
    assert "None" not in error


@pytest.mark.needs("unix", "permissions to read")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("the superuser may read every file")
    path = tmp_path / "secret.txt"
    path.write_bytes(TEXT)
    path.chmod(0)
    error = error_of(str(path))
    assert str(path) in error
    assert "ermission" in error


def test_the_hash_of_a_local_file_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(TEXT)
    assert open_corpus(str(path), SHA256).sha256 == SHA256
    path.write_bytes(TEXT + b"changed")
    changed = hashlib.sha256(TEXT + b"changed").hexdigest()
    error = error_of(str(path), SHA256)
    assert SHA256 in error
    assert f"--data.sha256 {changed}" in error


def test_the_sample_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_corpus("sample", sample_size=1234)
    assert first.path.stat().st_size == 1234
    monkeypatch.delattr(corpus, "write_play")
    assert open_corpus("sample", sample_size=1234) == first


@pytest.mark.parametrize("size", [0, -1, 10**9 + 1, 10**18])
def test_a_sample_size_out_of_range_is_refused(size: int) -> None:
    assert f"sample_size is {size}" in error_of("sample", sample_size=size)


@pytest.mark.usefixtures("play")
@pytest.mark.parametrize("name", ["sample", "tiny-shakespeare"])
def test_a_corpus_is_readable_by_everyone(name: str) -> None:
    assert open_corpus(name, sample_size=77).path.stat().st_mode & 0o444 == 0o444


def test_the_cache_is_where_the_variable_says_on_every_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows and macOS have another place, here `elsewhere`, and do not know the variable."""
    monkeypatch.setattr("pooch.os_cache", lambda name: Path("elsewhere", name))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "lit_gpt_scratch"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path("elsewhere", "lit_gpt_scratch")
