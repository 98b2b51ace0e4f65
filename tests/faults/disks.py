"""Faults of disks, full or read-only: an error line, and no existing file is lost.

Small file systems need root. Without root, only the faults with a limited file size run.
"""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness import Kinds, Site, last

PAGE = 4096
CHECKPOINT = 366_000  # bytes, approximately


@contextlib.contextmanager
def disk(folder: Path, size: int, options: str = "rw") -> Iterator[None]:
    """Mount a file system of `size` bytes on a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"{options},size={size}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def can_mount() -> bool:
    """Return whether this process may mount file systems."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with disk(Path(folder), PAGE):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


def fill(filler: Path, left: int) -> None:
    """Fill the disk of a file, except `left` pages."""
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(PAGE))
    os.truncate(filler, max(0, filler.stat().st_size - left * PAGE))


def no_room_for_a_checkpoint(site: Site) -> str:
    """Limit the file size of a new or a resumed run; an existing checkpoint must not change."""
    limit = CHECKPOINT - 100_000
    if site.number % 2:
        site.create(cached=True)
        outcome = site.start(file_limit=limit).expect_error("cannot be saved")
    else:
        site.create_interrupted()
        before = last(site.run).read_bytes()
        outcome = site.resume(file_limit=limit).expect_error("cannot be saved")
        assert last(site.run).read_bytes() == before, "the checkpoint was changed"
    return f"{outcome}, then {site.finish()}"


def no_room_for_any_file(site: Site) -> str:
    """Limit the file size to a few bytes, so that any file may fail first."""
    site.create_interrupted()
    outcome = site.resume(file_limit=int(10 ** site.rng.uniform(1, 4))).expect_error()
    return f"{outcome}, then {site.finish()}"


def disk_full(site: Site) -> str:
    """Fill the disk during training, completely or except a few pages."""
    site.create(cached=True)
    with disk(site.folder / "runs", 8 << 20):
        filler = site.folder / "runs" / "filler"
        process = site.start()
        for _ in range(site.rng.randint(1, 3)):
            process.wait_for(site.new_rows())
        process.wait_for(last(site.run).exists)
        fill(filler, 0 if site.number % 2 else site.rng.randint(1, 80))
        outcome = process.expect_error()
        filler.unlink()
        return f"{outcome}, then {site.finish()}"


def cache_full(site: Site) -> str:
    """Fill the cache's disk while the corpus is written, or while it is encoded."""
    site.create()
    with disk(site.cache, (4, 8)[site.number % 2] * PAGE):
        outcome = site.start().expect_error("cache", "sample")
    return f"{outcome}, then {site.finish()}"


def cache_read_only(site: Site) -> str:
    """Use a file as the cache folder, or a read-only disk."""
    site.create()
    if site.number % 2:
        site.env["XDG_CACHE_HOME"] = str(site.folder / "output_1.txt")
        outcome = site.start().expect_error("sample", "cache")
        site.env["XDG_CACHE_HOME"] = str(site.cache)
    else:
        with disk(site.cache, 8 << 20, "ro"):
            outcome = site.start().expect_error("sample", "cache")
    return f"{outcome}, then {site.finish()}"


def becomes_read_only(site: Site) -> str:
    """Make the disk read-only during training, as Linux does after a disk error."""
    site.create(cached=True)
    with disk(site.folder / "runs", 8 << 20):
        process = site.start()
        process.wait_for(last(site.run).exists)
        # Mount the folder read-only over itself. Linux refuses to remount the disk read-only,
        # because the run has its lock file open for writing.
        runs = str(site.folder / "runs")
        subprocess.run(["mount", "--bind", runs, runs], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", runs], check=True)
        outcome = process.expect_error()
        subprocess.run(["umount", runs], check=True)
        return f"{outcome}, then {site.finish()}"


KINDS: Kinds = {
    "file size limited: no room for a checkpoint": (2, no_room_for_a_checkpoint),
    "file size limited: no room for anything": (3, no_room_for_any_file),
}
# These need small file systems.
MOUNTED: Kinds = {
    "disk full while training": (4, disk_full),
    "disk full while making the cache": (2, cache_full),
    "cache cannot be written": (2, cache_read_only),
    "disk becomes read-only": (1, becomes_read_only),
}
