"""Atomic writes, and folder locks between processes."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from glob import escape
from pathlib import Path
from typing import BinaryIO


def lock(folder: Path, locked_if_unsupported: bool = False) -> int | None:
    """Lock a folder against other calls of `lock`, without waiting; return an open descriptor.

    Closing the descriptor, or exiting, releases the lock. The result is None if another process
    holds it, the folder does not exist, or the file system has no locks and such a folder is to
    count as locked.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = True
    except OSError as error:  # any but BlockingIOError: the file system has no locks
        locked = not isinstance(error, BlockingIOError) and not locked_if_unsupported
    if not locked or not folder.exists():  # the process that held it before may have deleted it
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def staging_dir(path: Path) -> Iterator[Path]:
    """Create a temporary folder next to `path`. Build a file in it, and rename the file to `path`.

    The folder is deleted on exit. On entry, folders that killed processes left for the same `path`
    are deleted; those of running processes are locked and stay.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{escape(path.name)}-????????.partial"):
        if (descriptor := lock(stale, locked_if_unsupported=True)) is not None:
            shutil.rmtree(stale, ignore_errors=True)
            os.close(descriptor)
    held = None
    while held is None:  # retry if another process deleted the new folder as stale
        folder = Path(tempfile.mkdtemp(".partial", f".{path.name}-", path.parent))
        held = lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file; rename it to `path` once it is complete and on disk.

    If the body raises, `path` stays as it was and nothing else is left.
    """
    with staging_dir(path) as folder, (folder / path.name).open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        Path(file.name).replace(path)
