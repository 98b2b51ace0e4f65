"""Laws of `corpus.py`. The internet is a server on this machine."""

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
from lit_gpt_scratch.data.corpus import open_corpus
from lit_gpt_scratch.errors import InputError

TEXT = "".join(f"SPEAKER {i}:\nA line of this play.\n\n" for i in range(1000)).encode()
SHA256 = hashlib.sha256(TEXT).hexdigest()


@dataclass
class Page:
    body: bytes
    status: int = 200
    promised: int | None = None  # Content-Length, where it is not the body's
    location: str | None = None  # where to go instead


FAILURES = {
    "the text is another": Page(TEXT.upper()),
    "the text is cut off": Page(TEXT[:100], promised=len(TEXT)),
    "not found": Page(b"404: Not Found", status=404),
    "the server is broken": Page(b"", status=500),
    "there is no server": None,
}
each_failure = pytest.mark.parametrize("page", FAILURES.values(), ids=FAILURES)


@dataclass
class Site:
    """A web server: `pages` holds its answers in order, the last one again and again."""

    server: ThreadingHTTPServer
    pages: list[Page | None] = field(default_factory=lambda: [Page(TEXT)])
    asked: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/input.txt"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(request.path)
        page = self.pages.pop(0) if len(self.pages) > 1 else self.pages[0]
        if page is not None:  # None: hang up without a word
            request.send_response(page.status)
            request.send_header("Content-Length", str(page.promised or len(page.body)))
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
    """The folder for downloads, empty."""
    monkeypatch.setenv("LIT_GPT_SCRATCH_DATA", str(tmp_path))
    monkeypatch.setattr(corpus, "RETRIES", 0)
    return tmp_path


@pytest.fixture
def play(site: Site, data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tiny Shakespeare is a text on our own server; this is where it goes."""
    monkeypatch.setattr(corpus, "TINY_SHAKESPEARE", site.url)
    monkeypatch.setattr(corpus, "TINY_SHAKESPEARE_SHA256", SHA256)
    return data / "tinyshakespeare" / "input.txt"


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def refusal(*args: Any, **options: Any) -> str:
    """The one line that a corpus is refused with."""
    with pytest.raises(InputError) as caught:
        open_corpus(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_download_arrives_whole_and_is_made_once(play: Path, site: Site) -> None:
    first, second = open_corpus("tiny-shakespeare"), open_corpus("tiny-shakespeare")
    assert first == second == corpus.Corpus("tiny-shakespeare", play, SHA256)
    assert play.read_bytes() == TEXT
    assert len(site.asked) == 1
    assert files_in(play.parent) == [play]


@each_failure
def test_a_failed_download_names_both_ways_on_and_leaves_nothing(
    play: Path, data: Path, site: Site, page: Page | None
) -> None:
    site.pages = [page]
    said = refusal("tiny-shakespeare")
    assert str(play) in said
    assert "--data.corpus sample" in said
    assert files_in(data) == []


@each_failure
@pytest.mark.usefixtures("play")
def test_after_a_failed_download_the_next_one_succeeds(site: Site, page: Page | None) -> None:
    site.pages = [page, Page(TEXT)]
    refusal("tiny-shakespeare")
    assert open_corpus("tiny-shakespeare").path.read_bytes() == TEXT


@pytest.mark.usefixtures("play")
def test_a_download_is_tried_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "RETRIES", 1)
    site.pages = [Page(TEXT[:100], promised=len(TEXT)), Page(TEXT)]
    assert open_corpus("tiny-shakespeare").path.read_bytes() == TEXT


@each_failure
def test_a_failed_download_falls_back_only_when_told_to_and_says_so(
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
def test_a_known_hash_does_not_fall_back(site: Site) -> None:
    """Such as a checkpoint's: no other text will do."""
    site.pages = [None]
    assert "Could not download" in refusal("tiny-shakespeare", SHA256, fallback="sample")


def test_a_good_download_does_not_fall_back(play: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = open_corpus("tiny-shakespeare", fallback="sample")
    assert (found.name, found.path, found.fell_back) == ("tiny-shakespeare", play, False)
    assert "SAMPLE" not in capsys.readouterr().err


def test_a_mistake_does_not_fall_back(play: Path, tmp_path: Path) -> None:
    """Only a failed download is replaced: a mistyped path is for the user to see."""
    assert "no such file" in refusal(str(tmp_path / "typo.txt"), fallback="sample")
    play.parent.mkdir()
    play.write_bytes(b"another text")
    assert "sha256" in refusal("tiny-shakespeare", fallback="sample")


def test_a_right_file_put_there_by_hand_is_used_with_the_server_down(
    play: Path, site: Site
) -> None:
    play.parent.mkdir()
    play.write_bytes(TEXT)
    site.pages = [None]
    assert open_corpus("tiny-shakespeare").sha256 == SHA256
    assert site.asked == []


def test_a_wrong_file_put_there_by_hand_is_refused_and_kept(play: Path, site: Site) -> None:
    play.parent.mkdir()
    play.write_bytes(b"the user's only copy of another text")
    said = refusal("tiny-shakespeare")
    assert str(play) in said
    assert SHA256 in said
    assert play.read_bytes() == b"the user's only copy of another text"
    assert site.asked == []


def test_an_empty_data_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_GPT_SCRATCH_DATA", "")
    assert corpus.download_folder() == corpus.cache_folder()


@pytest.mark.usefixtures("play")
def test_a_data_folder_that_cannot_be_written_is_refused(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_the_way = tmp_path / "a file, not a folder"
    in_the_way.touch()
    monkeypatch.setenv("LIT_GPT_SCRATCH_DATA", str(in_the_way))
    assert str(in_the_way) in refusal("tiny-shakespeare")
    assert site.asked == []


def test_tiny_shakespeare_is_what_its_hash_says(
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
def test_only_https_is_downloaded_from_other_machines(url: str) -> None:
    said = refusal(url)
    assert "only https://" in said
    assert url in said


@pytest.mark.parametrize(
    ("url", "come_from", "may"),
    [
        ("https://a.org/b", "https://c.org", True),
        ("https://a.org/b", "http://127.0.0.1/c", True),
        ("http://localhost/b", "http://127.0.0.1:80/c", True),
        ("http://a.org/b", "https://a.org/b", False),
        ("http://127.0.0.1/b", "https://a.org/b", False),
        ("https://[::1]/b", "https://a.org/b", False),
        ("http://a.org\\@127.0.0.1/", "http://127.0.0.1/", False),  # some read the latter's host
        ("http://127.0.0.1@a.org/", "http://127.0.0.1/", False),
        ("ftp://127.0.0.1/", "http://127.0.0.1/", False),
        ("file:///etc/passwd", "https://a.org", False),
        ("https://a.org:notaport/", "https://a.org", False),
    ],
)
def test_no_way_leads_from_https_to_http_or_from_outside_into_this_machine(
    url: str, come_from: str, may: bool
) -> None:
    assert corpus.may_download(url, come_from) == may


@given(st.text())
def test_no_address_leads_out_of_the_folder_of_downloads(name: str) -> None:
    place = corpus.place_of(f"https://a.org/{name}")
    assert place.resolve().parents[2] == corpus.download_folder().resolve()
    assert re.fullmatch("[0-9a-f]{16}", place.parent.name)
    assert place.name == "input.txt"


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("where", ["http://192.0.2.1/", "//192.0.2.1/a", "ftp://127.0.0.1/"])
def test_a_redirect_to_what_is_not_https_is_refused(site: Site, where: str) -> None:
    site.pages = [Page(b"", status=302, location=where)]
    assert "which is not allowed" in refusal(site.url)
    assert site.asked == ["/input.txt"]


@pytest.mark.usefixtures("data")
def test_a_redirect_within_this_machine_is_followed(site: Site) -> None:
    site.pages = [Page(b"", status=302, location="/other"), Page(TEXT)]
    assert open_corpus(site.url).sha256 == SHA256
    assert site.asked == ["/input.txt", "/other"]


def test_a_download_without_end_is_given_up_and_leaves_nothing(
    site: Site, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "MOST_BYTES", len(TEXT) - 1)
    assert f"larger than {len(TEXT) - 1:,} bytes" in refusal(site.url)
    assert len(site.asked) == 1  # it would not be smaller the next time
    assert files_in(data) == []


@pytest.mark.parametrize("url", ["https://", "https://[", "https:///a.txt"])
def test_a_malformed_url_is_refused(url: str, data: Path) -> None:
    assert url in refusal(url)
    assert files_in(data) == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("sha256", [None, SHA256])
def test_a_url_is_downloaded_once(site: Site, data: Path, host: str, sha256: str | None) -> None:
    url = site.url.replace("127.0.0.1", host)
    first, second = open_corpus(url, sha256), open_corpus(url, sha256)
    assert first == second
    assert (first.name, first.sha256) == (url, SHA256)
    assert first.path.read_bytes() == TEXT
    assert len(site.asked) == 1
    assert files_in(data) == [first.path]


@pytest.mark.usefixtures("data")
def test_two_urls_have_two_files(site: Site) -> None:
    """Though the last part of the addresses, and so the name that a browser gives, is the same."""
    site.pages = [Page(b"one"), Page(b"two")]
    first, second = open_corpus(site.url), open_corpus(site.url.replace("/input", "/b/input"))
    assert (first.path.read_bytes(), second.path.read_bytes()) == (b"one", b"two")


def test_a_url_with_another_sha256_is_refused_and_leaves_nothing(site: Site, data: Path) -> None:
    said = refusal(site.url, sha256="0" * 64)
    assert site.url in said
    assert files_in(data) == []


@pytest.mark.usefixtures("data")
def test_a_url_downloaded_earlier_is_held_against_the_sha256(site: Site) -> None:
    path = open_corpus(site.url).path
    said = refusal(site.url, sha256="0" * 64)
    assert str(path) in said
    assert path.read_bytes() == TEXT


@pytest.mark.parametrize(
    "failure", [failure for failure in FAILURES if failure != "the text is another"]
)
def test_a_url_without_a_hash_is_whole_or_refused(site: Site, data: Path, failure: str) -> None:
    """Nothing but the length that the server promised says that a text was cut off."""
    site.pages = [FAILURES[failure]]
    said = refusal(site.url)
    assert site.url in said
    assert "--data.corpus sample" in said
    assert files_in(data) == []


def test_a_file_is_used_where_it_is_and_named_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a checkpoint finds it from any folder."""
    path = tmp_path / "a text.txt"
    path.write_bytes(TEXT)
    found = open_corpus(str(path))
    assert found == corpus.Corpus(str(path), path, SHA256)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_corpus("a text.txt") == open_corpus("~/a text.txt") == found


@pytest.mark.usefixtures("play")
@pytest.mark.parametrize("name", ["sample", "tiny-shakespeare"])
def test_a_file_that_has_a_corpus_name_by_chance_is_not_taken_for_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(b"another text")
    monkeypatch.chdir(tmp_path)
    found = open_corpus(name)
    assert found.name == name
    assert found.path.read_bytes() != b"another text"


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    """It has no size and cannot be read twice."""
    os.mkfifo(tmp_path / "pipe")
    assert "is not a file" in refusal(str(tmp_path / "pipe"))


def test_a_damaged_sample_is_written_again() -> None:
    path = open_corpus("sample", sample_size=321).path
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert open_corpus("sample", sample_size=321).path.read_bytes() == whole


def test_a_folder_is_refused(tmp_path: Path) -> None:
    said = refusal(str(tmp_path))
    assert str(tmp_path) in said
    assert "is a folder" in said


@pytest.mark.parametrize("name", ["missing.txt", "a text.txt/below", "nul\0byte"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a text.txt").write_bytes(TEXT)
    said = refusal(str(tmp_path / name))
    assert repr(str(tmp_path / name)) in said
    assert "tiny-shakespeare" in said


def test_a_home_that_does_not_exist_is_refused() -> None:
    assert "~nobody-of-this-name" in refusal("~nobody-of-this-name/a text.txt")


def test_a_name_that_the_system_refuses_is_refused(tmp_path: Path) -> None:
    """Such as a whole text pasted where its path belongs."""
    assert "too long" in refusal(str(tmp_path / ("word " * 100)))


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux")
def test_a_file_that_fails_while_it_is_read_is_refused() -> None:
    """This one opens, but its first byte is not to be had."""
    said = refusal("/proc/self/mem")
    assert "/proc/self/mem" in said
    assert "None" not in said


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every file")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret.txt"
    path.write_bytes(TEXT)
    path.chmod(0)
    said = refusal(str(path))
    assert str(path) in said
    assert "ermission" in said


def test_a_file_is_held_against_the_sha256(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(TEXT)
    assert open_corpus(str(path), SHA256).sha256 == SHA256
    path.write_bytes(TEXT + b"changed")
    changed = hashlib.sha256(TEXT + b"changed").hexdigest()
    said = refusal(str(path), SHA256)
    assert SHA256 in said
    assert f"--data.sha256 {changed}" in said


def test_the_sample_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_corpus("sample", sample_size=1234)
    assert first.path.stat().st_size == 1234
    monkeypatch.delattr(corpus, "write_play")
    assert open_corpus("sample", sample_size=1234) == first


@pytest.mark.parametrize("size", [0, -1, 10**9 + 1, 10**18])
def test_a_sample_of_no_or_absurdly_many_characters_is_refused(size: int) -> None:
    assert f"sample_size is {size}" in refusal("sample", sample_size=size)


@pytest.mark.usefixtures("play")
@pytest.mark.parametrize("name", ["sample", "tiny-shakespeare"])
def test_a_corpus_is_readable_to_those_who_share_the_folder(name: str) -> None:
    assert open_corpus(name, sample_size=77).path.stat().st_mode & 0o444 == 0o444
