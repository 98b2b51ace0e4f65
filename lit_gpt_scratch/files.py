"""Files and folders that are there whole, or not at all, and folders that one process holds."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from glob import escape
from pathlib import Path
from typing import BinaryIO


def lock(folder: Path, surely: bool = False) -> int | None:
    """Hold a folder, for as long as the descriptor is open or this process lives.

    Args:
        folder: To hold.
        surely: Whether to take a file system that has no locks, as some clusters' have none, for
            one where another process holds it; else nobody is kept out there.

    Returns:
        The descriptor; None where another holds the folder, or there is none.
    """
    try:
        held = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        taken = False
    except BlockingIOError:
        taken = True
    except OSError:
        taken = surely
    if taken or not folder.exists():  # whoever held it before may have removed it
        os.close(held)
        return None
    return held


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A folder to make something in that is to take its place at `path` when it is complete.

    It is gone afterwards, and so is what processes left that were killed while they made the same.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{escape(path.name)}-????????.partial"):
        if (free := lock(left, surely=True)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(free)
    held = None
    while held is None:  # until no other has taken it for one that was left
        folder = Path(tempfile.mkdtemp(".partial", f".{path.name}-", path.parent))
        held = lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its name when it is complete and on disk, or leaves nothing."""
    with beside(path) as folder, (folder / path.name).open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        Path(file.name).replace(path)
