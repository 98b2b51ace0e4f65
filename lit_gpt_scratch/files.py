"""Atomic writes, locks between processes, and HTML pages of one file each."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO

from filelock import BaseFileLock, FileLock, Timeout

from lit_gpt_scratch.errors import InputError

LOCK = ".lock"  # the file in a folder that a process locks


def lock(folder: Path, locked_if_unsupported: bool = False) -> BaseFileLock | None:
    """Lock a folder against other calls of `lock`, without waiting; `release()` ends the lock.

    The end of the process ends it, too. The result is None if another process holds the lock, the
    folder does not exist, or its file system has no locks and such a folder is to count as locked.
    """
    if not folder.is_dir():
        return None
    held = FileLock(folder / LOCK, timeout=0, thread_local=False, fallback_to_soft=False)
    try:
        held.acquire()
    except Timeout:
        return None
    except (OSError, NotImplementedError):  # no locks, or a folder that cannot be written
        return None if locked_if_unsupported else held
    return held


def _remove(folder: Path, held: BaseFileLock | None) -> None:
    """Remove a folder that this process has locked, and release the lock."""
    shutil.rmtree(folder, ignore_errors=True)  # on Windows, all but the open lock file
    if held:
        held.release()
    if os.name == "nt":
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def staging_dir(path: Path) -> Iterator[Path]:
    """Create a temporary folder next to `path`. Build a file in it, and rename the file to `path`.

    The folder is deleted on exit. On entry, folders that killed processes left for the same `path`
    are deleted; those of running processes are locked and stay.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{escape(path.name)}-????????.partial"):
        if (held := lock(stale, locked_if_unsupported=True)) is not None:
            _remove(stale, held)
    held = None
    while held is None:  # retry if another process takes the new folder for a stale one
        folder = Path(tempfile.mkdtemp(".partial", f".{path.name}-", path.parent))
        held = lock(folder)
    try:
        yield folder
    finally:
        _remove(folder, held)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file; rename it to `path` once it is complete and on disk.

    If the body raises, `path` stays as it was and nothing else is left.
    """
    with staging_dir(path) as folder:
        temporary = folder / path.name
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)  # Windows renames no open file


def atomic_link(source: Path, path: Path) -> bool:
    """Give a file on disk a second name, `path`, without copying it; return whether it worked.

    Some file systems have no hard links: then `path` stays as it was. Both names keep what they
    have when `atomic_write` later replaces the other one; writing in place would change both.
    """
    try:
        with staging_dir(path) as folder:
            temporary = folder / path.name
            temporary.hardlink_to(source)
            temporary.replace(path)
    except OSError:
        return False
    return True


def render_html(template: str, **values: Any) -> str:
    """Return the page of a Jinja template. All values but those of type Markup are escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment.from_string(template).render(**values)


def write_html(output: Path, kind: str, make: Callable[[], str]) -> None:
    """Make a page, and write it.

    Args:
        output: The file. It may replace a page of the same kind.
        kind: What the second line of the page says that it is, such as report.
        make: Returns the page.

    Raises:
        InputError: Another file would be replaced (then no page is made), or cannot be written.
    """
    first_lines = f"<!doctype html>\n<!-- lit_gpt_scratch {kind} -->".encode()
    try:
        if output.exists() and not output.read_bytes().startswith(first_lines):
            raise InputError(f"output {output} exists and is no {kind}: choose another --output.")
        page = make()
        with atomic_write(output) as file:
            file.write(page.encode("utf-8", "replace"))
    except OSError as error:
        raise InputError(f"output {output} cannot be written ({error.strerror}).") from error
