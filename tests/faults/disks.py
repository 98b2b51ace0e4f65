"""Disks that are full, or may not be written: one line, and nothing that was there is lost.

Small disks of their own need root; where they cannot be had, a limit on the size of files is what
is left.
"""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness import Kinds, Site, last

PAGE = 4096
CHECKPOINT = 366_000  # bytes, about


@contextlib.contextmanager
def disk(folder: Path, size: int, options: str = "rw") -> Iterator[None]:
    """A folder as a disk of its own, of a size in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"{options},size={size}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def can_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            with disk(Path(folder), PAGE):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


def fill(ballast: Path, left: int) -> None:
    """A disk, but for so many pages."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(PAGE))
    os.truncate(ballast, max(0, ballast.stat().st_size - left * PAGE))


def no_room_for_a_checkpoint(site: Site) -> str:
    """In a run from its start, or in one that goes on, whose checkpoint must survive."""
    room = CHECKPOINT - 100_000
    if site.number % 2:
        site.make(warm=True)
        said = site.start(room=room).is_refused("cannot be saved")
    else:
        site.make_half()
        before = last(site.run).read_bytes()
        said = site.resume(room=room).is_refused("cannot be saved")
        assert last(site.run).read_bytes() == before, "the checkpoint was changed"
    return f"{said}, then {site.finish()}"


def no_room_for_any(site: Site) -> str:
    """For the file that first grows beyond a few bytes, whichever it is."""
    site.make_half()
    said = site.resume(room=int(10 ** site.draw.uniform(1, 4))).is_refused()
    return f"{said}, then {site.finish()}"


def full(site: Site) -> str:
    """From a moment on, but for a few pages, or for none."""
    site.make(warm=True)
    with disk(site.folder / "runs", 8 << 20):
        ballast = site.folder / "runs" / "ballast"
        process = site.start()
        for _ in range(site.draw.randint(1, 3)):
            process.until(site.training())
        process.until(last(site.run).exists)
        fill(ballast, 0 if site.number % 2 else site.draw.randint(1, 80))
        said = process.is_refused()
        ballast.unlink()
        return f"{said}, then {site.finish()}"


def cache_full(site: Site) -> str:
    """While the sample is written, or while it is encoded."""
    site.make()
    with disk(site.cache, (4, 8)[site.number % 2] * PAGE):
        said = site.start().is_refused("cache", "sample")
    return f"{said}, then {site.finish()}"


def cache_read_only(site: Site) -> str:
    """A folder's name that is a file's, or a disk that is read-only."""
    site.make()
    if site.number % 2:
        site.env["XDG_CACHE_HOME"] = str(site.folder / "said_1.txt")
        said = site.start().is_refused("sample", "cache")
        site.env["XDG_CACHE_HOME"] = str(site.cache)
    else:
        with disk(site.cache, 8 << 20, "ro"):
            said = site.start().is_refused("sample", "cache")
    return f"{said}, then {site.finish()}"


def becomes_read_only(site: Site) -> str:
    """As a disk does that has met an error."""
    site.make(warm=True)
    with disk(site.folder / "runs", 8 << 20):
        process = site.start()
        process.until(last(site.run).exists)
        remount = ["mount", "-o", "remount,ro", str(site.folder / "runs")]
        process.until(lambda: not subprocess.run(remount, capture_output=True).returncode)
        said = process.is_refused()
        subprocess.run(["mount", "-o", "remount,rw", str(site.folder / "runs")], check=True)
        return f"{said}, then {site.finish()}"


KINDS: Kinds = {
    "file size limited: no room for a checkpoint": (2, no_room_for_a_checkpoint),
    "file size limited: no room for anything": (3, no_room_for_any),
}
# Where small disks can be mounted.
MOUNTED: Kinds = {
    "disk full while training": (4, full),
    "disk full while making the cache": (2, cache_full),
    "cache cannot be written": (2, cache_read_only),
    "disk becomes read-only": (1, becomes_read_only),
}
