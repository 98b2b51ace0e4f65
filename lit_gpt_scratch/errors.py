"""What a user got wrong, said so that they can put it right.

Everything that a user can mistype or misplace raises `InputError`; the command line prints its one
line and exits, without a traceback. All other exceptions are ours to mend and keep their traceback.
"""

import contextlib
import sys
from argparse import ArgumentError
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn


class InputError(ValueError):
    """A user's mistake: the text names the value, what is allowed, and the fix."""


def refuse(program: str, mistake: object) -> NoReturn:
    """End with a mistake as one line on standard error, and exit code 2."""
    line = " ".join(str(mistake).split())
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)  # no terminal's orders
    print(f"{program}: error: {line}", file=sys.stderr)
    raise SystemExit(2) from None


@contextlib.contextmanager
def mistakes_in_one_line(program: str) -> Iterator[None]:
    """`refuse` what a user got wrong."""
    try:
        yield
    except (InputError, ArgumentError) as error:
        refuse(program, error)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise `InputError` for a disk that is full or may not be written: its user's to mend."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}): make room, and go on from the "
            "run's last checkpoint with --ckpt_path, if it has one."
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether that is what an exception says: Python, PyTorch and NumPy each in their own words."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or "alloc" in said or "of memory" in said


def require_positive(**values: int) -> None:
    """Raise `InputError` for the first value under 1, naming it."""
    for name, value in values.items():
        if value < 1:
            raise InputError(f"{name} is {value}: it must be at least 1.")


def require_dropout(dropout: float) -> None:
    """Raise `InputError` unless dropout is a probability under 1."""
    if not 0 <= dropout < 1:
        raise InputError(f"dropout is {dropout}: it must be at least 0 and under 1.")
