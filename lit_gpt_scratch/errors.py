"""Users' mistakes: `InputError`, which the commands print as one line without a traceback.

All other exceptions are bugs and keep their traceback.
"""

import contextlib
import sys
import sysconfig
import traceback
from argparse import ArgumentError
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from lit_gpt_scratch.private_api import OUT_OF_MEMORY


class InputError(ValueError):
    """A user's mistake. The text names the value, says what is allowed, and how to fix it."""


def exit_with_error(program: str, error: object) -> NoReturn:
    """Print an error as one line on standard error and exit with code 2."""
    line = " ".join(str(error).split())
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)  # no escape sequences
    print(f"{program}: error: {line}", file=sys.stderr)
    raise SystemExit(2) from None


@contextlib.contextmanager
def exit_on_input_error(program: str) -> Iterator[None]:
    """Exit with one line if the body raises `InputError` or argparse's `ArgumentError`."""
    try:
        yield
    except (InputError, ArgumentError) as error:
        exit_with_error(program, error)


@contextlib.contextmanager
def write_errors_as_input_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` in the body, such as a full disk, into an `InputError` naming `path`."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}): free some space or allow "
            "writing, then resume from the run's last checkpoint, if it has one, with --ckpt_path."
        ) from error


def describe_error(error: BaseException) -> str:
    """Return an exception's type, place and text in one line."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{type(error).__name__} in {Path(place.filename).name}, line {place.lineno}"
    return f"{where}: {' '.join(str(error).split())[:200]}"


def is_bug(error: BaseException) -> bool:
    """Return whether an exception is surely a bug, by its type or because of where it was raised.

    An error in a file outside the installed packages comes from the user's code. Errors in
    `models/` count too, because a researcher may have edited a network there.
    """
    package = Path(__file__).parent
    installed = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    places = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    own = [
        path.is_relative_to(package / "models")
        or not any(path.is_relative_to(folder) for folder in (package, *installed))
        for path in places
        if path.is_absolute()  # not <frozen runpy> and the like
    ]
    return any(own) or isinstance(error, NameError | ImportError | SyntaxError | AssertionError)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception reports a lack of memory; Python, PyTorch and NumPy differ."""
    text = str(error).lower()
    is_said = isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY)
    return isinstance(error, MemoryError) or is_said


def require_positive(**values: int) -> None:
    """Raise `InputError` for the first value below 1, with its name."""
    for name, value in values.items():
        if value < 1:
            raise InputError(f"{name} is {value}: it must be at least 1.")


def require_dropout(dropout: float) -> None:
    """Raise `InputError` unless dropout is at least 0 and below 1."""
    if not 0 <= dropout < 1:
        raise InputError(f"dropout is {dropout}: it must be at least 0 and under 1.")
