"""Processes that are killed at a chosen place: what they were at must not be left torn."""

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
    """What to wait for: a file in a folder that is not whole yet."""

    def seen() -> bool:
        return folder.exists() and any(path.name.startswith(prefix) for path in folder.iterdir())

    return seen


def kill_soon(site: Site, process: Process, most: float, number: int = signal.SIGKILL) -> None:
    """Within some seconds from now."""
    time.sleep(site.draw.uniform(0, most))
    process.kill(number)


def saving(site: Site) -> str:
    """Between the temporary file's first byte and its renaming."""
    site.make(warm=True)
    process, folder = site.start(), site.run / "checkpoints"
    for _ in range(site.draw.randint(0, 5)):  # so many are written before
        process.until(temporary(folder))
        process.until(lambda: not temporary(folder)())
    assert process.until(temporary(folder)), "nothing was seen while it was written"
    kill_soon(site, process, 0.01, site.draw.choice((signal.SIGKILL, *SIGNALS)))
    return site.finish()


def validating(site: Site) -> str:
    """In a run that does little else."""
    site.setting = "validating"
    site.make(warm=True)
    process = site.start()
    process.until((site.run / "samples.csv").exists)
    kill_soon(site, process, 4, site.draw.choice(SIGNALS))
    return site.finish()


def after_validation(site: Site) -> str:
    """When its first row is there, and the checkpoint that follows it is not."""
    site.make(warm=True)
    process, table = site.start(), site.run / site.draw.choice(["samples.csv", "symbols.csv"])
    process.until(table.exists)
    size, times = 0, site.draw.randint(1, 4)

    def grew() -> bool:
        nonlocal size, times
        now = table.stat().st_size
        times -= now > size
        size = now
        return not times

    process.until(grew)
    process.kill(signal.SIGKILL)
    return site.finish()


def building(site: Site) -> str:
    """A cache of tens of megabytes."""
    site.setting = "large"
    whole = site.prepared.whole("large")
    site.make()
    tokens = site.cache / "lit_gpt_scratch" / "tokens"
    process = site.start()
    process.until(temporary(tokens))
    kill_soon(site, process, 1, SIGNALS[site.number % 3])
    said = site.finish()
    there = whole.cache / "lit_gpt_scratch" / "tokens"
    found, wanted = (
        {
            path.relative_to(folder): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        for folder in (tokens, there)
    )
    assert found.keys() == wanted.keys(), f"left behind: {sorted(found.keys() ^ wanted.keys())}"
    assert found == wanted, "another cache"
    return said


class Server(ThreadingHTTPServer):
    """Serves a text, in one go or in drips, or only its first half.

    Attributes:
        pause: Seconds between two drips.
        cut: Whether it ends too early.
        asked: How often it was asked.
    """

    daemon_threads = True
    pause, cut, asked = 0.0, False, 0

    def __init__(self, text: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.text = text

    def handle_error(self, *_: object) -> None:
        """Whoever asked is dead."""


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.text)))
        self.end_headers()
        text = self.server.text[: len(self.server.text) // 2 if self.server.cut else None]
        for start in range(0, len(text), 500):
            self.wfile.write(text[start : start + 500])
            time.sleep(self.server.pause)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def served(site: Site) -> Iterator[Server]:
    """The plain text from a server on this machine, as the site's corpus."""
    server = Server(site.prepared.text())
    site.flags.append(f"--data.corpus=http://127.0.0.1:{server.server_port}/input.txt")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def is_downloaded(site: Site) -> None:
    """Whole, and with nothing beside it."""
    files = [path for path in (site.folder / "data").rglob("*") if path.is_file()]
    assert [path.name for path in files] == ["input.txt"], f"left behind: {files}"
    assert files[0].read_bytes() == site.prepared.text(), "another text"


def downloading(site: Site) -> str:
    """From a slow server, and then once more from a fast one."""
    site.make()
    with served(site) as server:
        server.pause = 0.2
        process = site.start()
        process.until(lambda: server.asked)
        kill_soon(site, process, 4, SIGNALS[site.number % 3])
        server.pause = 0.0
        said = site.finish()
    is_downloaded(site)
    return said


def half_a_download(site: Site) -> str:
    """The server ends in the middle, each time."""
    site.make()
    with served(site) as server:
        server.cut = True
        said = site.start().is_refused("Could not download")
        server.cut = False
        said += ", then " + site.finish()
    is_downloaded(site)
    return said


def starting_wandb(site: Site) -> str:
    """While it makes its first files; or later, in training."""
    site.make(warm=True)
    site.flags = ["--wandb.mode=offline"]
    process = site.start()
    process.until((site.run / "wandb").exists)
    if site.number % 2:
        process.until(last(site.run).exists)
    kill_soon(site, process, 1.5, site.draw.choice(SIGNALS))
    resumed, before = last(site.run).exists(), site.run
    segments = set(before.glob("wandb/offline-run-*"))
    said = site.finish()
    ids = {path.name.rpartition("-")[2] for path in site.run.glob("wandb/offline-run-*")}
    assert len(ids) == 1, f"W&B has {len(ids)} runs of one"
    if resumed:
        assert site.run == before
        assert segments <= set(site.run.glob("wandb/offline-run-*")), "a segment is lost"
    return said


def resuming(site: Site) -> str:
    """At any time, or while rows are cut off."""
    site.make_half()
    for table in ("metrics.csv", "samples.csv"):  # as though it had logged on, and been killed
        with (site.run / table).open("a") as file:
            file.write("999,later\n99")
    process = site.resume()
    if site.number % 2:
        process.until(temporary(site.run))
        kill_soon(site, process, 0.01)
    else:
        kill_soon(site, process, 9, site.draw.choice(SIGNALS))
    return site.finish()


def between_two_signals(site: Site) -> str:
    """The second SIGINT stops at once; after SIGTERM, too; SIGTERM twice waits."""
    site.make(warm=True)
    process = site.start()
    process.until(site.training())
    time.sleep(site.draw.uniform(0, 1))
    first, second = [
        (signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT),
        (signal.SIGTERM, signal.SIGTERM),
    ][site.number % 3]  # fmt: skip
    process.popen.send_signal(first)
    time.sleep(site.draw.uniform(0, 0.1))
    process.popen.send_signal(second)
    code = process.end()
    # The last of them is a signal that came when the process was as good as gone.
    right = (128 + first, 128 + second, 0, -second)
    assert code in right, f"exit {code}:\n{process.said}"
    return site.finish()


def hanging_up(site: Site) -> str:
    """The terminal is closed, and the power is cut: no handler at all."""
    site.make(warm=True)
    process = site.start()
    process.until(site.training())
    kill_soon(site, process, 2, signal.SIGHUP)
    return site.finish()


KINDS: Kinds = {
    "killed while saving": (5, saving),
    "killed while validating": (3, validating),
    "killed between a validation and its checkpoint": (2, after_validation),
    "killed while building the cache": (3, building),
    "killed while downloading": (3, downloading),
    "download cut off": (1, half_a_download),
    "killed with W&B starting or recording": (4, starting_wandb),
    "killed while resuming": (4, resuming),
    "two signals": (3, between_two_signals),
    "hung up": (1, hanging_up),
}
