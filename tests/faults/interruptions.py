"""Faults that kill a process at a chosen place: no incomplete file may be left behind."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from harness import Kinds, Process, Site, last

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def temporary(folder: Path, prefix: str = ".") -> Callable[[], bool]:
    """Return a condition for `wait_for`: a folder has a temporary file."""

    def exists() -> bool:
        return folder.exists() and any(path.name.startswith(prefix) for path in folder.iterdir())

    return exists


def kill_soon(site: Site, process: Process, delay: float, number: int = signal.SIGKILL) -> None:
    """Kill a process after a random delay of at most `delay` seconds."""
    time.sleep(site.rng.uniform(0, delay))
    process.kill(number)


def saving(site: Site) -> str:
    """Kill between the first byte of a checkpoint's temporary file and its renaming."""
    site.create(cached=True)
    process, folder = site.start(), site.run / "checkpoints"
    for _ in range(site.rng.randint(0, 5)):  # so many checkpoints are complete
        process.wait_for(temporary(folder))
        process.wait_for(lambda: not temporary(folder)())
    assert process.wait_for(temporary(folder)), "no temporary file was seen"
    kill_soon(site, process, 0.01, site.rng.choice((signal.SIGKILL, *SIGNALS)))
    return site.finish()


def validating(site: Site) -> str:
    """Kill a run that spends most of its time on validation."""
    site.setting = "validating"
    site.create(cached=True)
    process = site.start()
    process.wait_for((site.run / "samples.csv").exists)
    kill_soon(site, process, 4, site.rng.choice(SIGNALS))
    return site.finish()


def after_validation(site: Site) -> str:
    """Kill after a validation has written its rows, before the checkpoint that follows."""
    site.create(cached=True)
    process, table = site.start(), site.run / site.rng.choice(["samples.csv", "symbols.csv"])
    process.wait_for(table.exists)
    size, left = 0, site.rng.randint(1, 4)

    def has_grown() -> bool:
        nonlocal size, left
        now = table.stat().st_size
        left -= now > size
        size = now
        return not left

    process.wait_for(has_grown)
    process.kill(signal.SIGKILL)
    return site.finish()


def building_cache(site: Site) -> str:
    """Kill while a cache of tens of megabytes is built."""
    site.setting = "large"
    expected = site.prepared.uninterrupted("large")
    site.create()
    tokens = site.cache / "lit_gpt_scratch" / "tokens"
    process = site.start()
    process.wait_for(temporary(tokens))
    kill_soon(site, process, 1, SIGNALS[site.number % 3])
    outcome = site.finish()
    expected_tokens = expected.cache / "lit_gpt_scratch" / "tokens"
    found, wanted = (
        {
            path.relative_to(folder): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        for folder in (tokens, expected_tokens)
    )
    assert found.keys() == wanted.keys(), f"left behind: {sorted(found.keys() ^ wanted.keys())}"
    assert found == wanted, "another cache"
    return outcome


class Server(ThreadingHTTPServer):
    """Serves a text, quickly, slowly, or only its first half.

    Attributes:
        pause: Seconds between two blocks of 500 bytes.
        cut: Whether to stop after half the text.
        requests: Number of requests so far.
    """

    daemon_threads = True
    pause, cut, requests = 0.0, False, 0

    def __init__(self, text: bytes) -> None:
        super().__init__(("127.0.0.1", 0), TextHandler)
        self.text = text

    def handle_error(self, *_: object) -> None:
        """Ignore errors: the client was killed."""


class TextHandler(BaseHTTPRequestHandler):
    """Answers each request with the server's text."""

    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.text)))
        self.end_headers()
        text = self.server.text[: len(self.server.text) // 2 if self.server.cut else None]
        for start in range(0, len(text), 500):
            self.wfile.write(text[start : start + 500])
            time.sleep(self.server.pause)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def served(site: Site) -> Iterator[Server]:
    """Serve the plain corpus on this machine and use its URL as the site's corpus."""
    server = Server(site.prepared.text())
    site.flags.append(f"--data.corpus=http://127.0.0.1:{server.server_port}/input.txt")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def check_download(site: Site) -> None:
    """Check that the downloaded file is complete and the only file."""
    files = [path for path in (site.folder / "data").rglob("*") if path.is_file()]
    assert [path.name for path in files] == ["input.txt"], f"left behind: {files}"
    assert files[0].read_bytes() == site.prepared.text(), "another text"


def downloading(site: Site) -> str:
    """Kill during a slow download, then download again from a fast server."""
    site.create()
    with served(site) as server:
        server.pause = 0.2
        process = site.start()
        process.wait_for(lambda: server.requests)
        kill_soon(site, process, 4, SIGNALS[site.number % 3])
        server.pause = 0.0
        outcome = site.finish()
    check_download(site)
    return outcome


def incomplete_download(site: Site) -> str:
    """The server stops in the middle of the text: an error; then it works again."""
    site.create()
    with served(site) as server:
        server.cut = True
        outcome = site.start().expect_error("Could not download")
        server.cut = False
        outcome += ", then " + site.finish()
    check_download(site)
    return outcome


def recording_with_wandb(site: Site) -> str:
    """Kill while W&B creates its first files, or later in training."""
    site.create(cached=True)
    site.flags = ["--wandb.mode=offline"]
    process = site.start()
    process.wait_for((site.run / "wandb").exists)
    if site.number % 2:
        process.wait_for(last(site.run).exists)
    kill_soon(site, process, 1.5, site.rng.choice(SIGNALS))
    resumed, before = last(site.run).exists(), site.run
    segments = set(before.glob("wandb/offline-run-*"))
    outcome = site.finish()
    ids = {path.name.rpartition("-")[2] for path in site.run.glob("wandb/offline-run-*")}
    assert len(ids) == 1, f"W&B has {len(ids)} runs in place of one"
    if resumed:
        assert site.run == before
        assert segments <= set(site.run.glob("wandb/offline-run-*")), "a segment is lost"
    return outcome


def resuming(site: Site) -> str:
    """Kill a resumed run at any time, or while it trims its tables."""
    site.create_interrupted()
    for table in ("metrics.csv", "samples.csv"):  # as if it had logged more rows and was killed
        with (site.run / table).open("a", encoding="utf-8") as file:
            file.write("999,later\n99")
    process = site.resume()
    if site.number % 2:
        process.wait_for(temporary(site.run))
        kill_soon(site, process, 0.01)
    else:
        kill_soon(site, process, 9, site.rng.choice(SIGNALS))
    return site.finish()


def two_signals(site: Site) -> str:
    """Send two signals: a second SIGINT stops at once, a second SIGTERM waits for the save."""
    site.create(cached=True)
    process = site.start()
    process.wait_for(site.new_rows())
    time.sleep(site.rng.uniform(0, 1))
    first, second = [
        (signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT),
        (signal.SIGTERM, signal.SIGTERM),
    ][site.number % 3]  # fmt: skip
    process.popen.send_signal(first)
    time.sleep(site.rng.uniform(0, 0.1))
    process.popen.send_signal(second)
    code = process.wait()
    # -second: the signal arrived when the process had almost ended.
    allowed = (128 + first, 128 + second, 0, -second)
    assert code in allowed, f"exit {code}:\n{process.output}"
    return site.finish()


def terminal_closed(site: Site) -> str:
    """Send SIGHUP, as a closed terminal does; no handler runs."""
    site.create(cached=True)
    process = site.start()
    process.wait_for(site.new_rows())
    kill_soon(site, process, 2, signal.SIGHUP)
    return site.finish()


KINDS: Kinds = {
    "killed while saving": (5, saving),
    "killed while validating": (3, validating),
    "killed between a validation and its checkpoint": (2, after_validation),
    "killed while building the cache": (3, building_cache),
    "killed while downloading": (3, downloading),
    "download cut off": (1, incomplete_download),
    "killed with W&B starting or recording": (4, recording_with_wandb),
    "killed while resuming": (4, resuming),
    "two signals": (3, two_signals),
    "hung up": (1, terminal_closed),
}
