"""Keeps what `fit` prints in the run's console.log."""

import contextlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO


class Tee:
    """A stream that writes to another stream, and to a log without redrawn progress bars."""

    def __init__(self, stream: Any, log: TextIO) -> None:
        self.stream, self.log = stream, log

    def write(self, text: str) -> int:
        if "\r" not in text and "\033" not in text:
            with contextlib.suppress(OSError, ValueError):  # the disk is full, or the log is closed
                self.log.write(text)
        return int(self.stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def console_log(folder: Path) -> Iterator[None]:
    """In this `with` block, append standard output and error, and an error's traceback, to a log.

    The log must never end a run: without one, the block runs all the same.
    """
    try:
        # Line by line, so that a killed run has its last lines, too.
        log = (folder / "console.log").open("a", encoding="utf-8", errors="replace", buffering=1)
    except OSError:
        yield
        return
    out, err = Tee(sys.stdout, log), Tee(sys.stderr, log)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
    except Exception:
        with contextlib.suppress(OSError):
            log.write(traceback.format_exc())
        raise
    finally:
        with contextlib.suppress(OSError):
            log.close()
