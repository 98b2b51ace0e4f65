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

from lit_gpt_scratch.private_api import OUT_OF_MEMORY, errors_of_union

# Where code lies that is not the user's.
PACKAGE = Path(__file__).parent
LIBRARIES = {"site-packages", "dist-packages"}  # names of folders
INSTALLED = (PACKAGE, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")))


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
    """Return an exception's type, place and text in one line.

    The place is the last line of the user's own code that it passed through, if there is one, else
    the last line of this package.
    """
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if is_users_file(Path(frame.filename))]
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(PACKAGE)]
    place = (users or ours or frames)[-1]
    where = f"{type(error).__name__} in {Path(place.filename).name}, line {place.lineno}"
    return f"{where}: {' '.join(str(error).split())[:200]}"


def files_of(error: BaseException) -> list[Path]:
    """Return the files that an exception passed through, from its `raise` statement outwards."""
    paths = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    return [path for path in reversed(paths) if path.is_absolute()]  # no <frozen runpy>


def is_in_user_code(error: BaseException) -> bool:
    """Return whether an exception passed through a file outside the installed packages."""
    return any(map(is_users_file, files_of(error)))


def is_users_file(path: Path) -> bool:
    """Return whether a file of a traceback is outside the installed packages."""
    is_installed = any(map(path.is_relative_to, INSTALLED)) or not LIBRARIES.isdisjoint(path.parts)
    return path.is_absolute() and not is_installed  # <frozen runpy> is no file


def is_bug(error: BaseException, *rooms: str) -> bool:
    """Return whether an exception is surely a bug, by its type or because of where it was raised.

    A researcher may have edited `models/`: every error that passes through it counts. An error that
    is raised in a folder of `rooms` counts, too. Give none while a checkpoint's state is restored:
    a damaged state causes errors in `training/`.
    """
    files = files_of(error)
    is_ours = any(path.is_relative_to(PACKAGE / "models") for path in files)
    is_ours |= any(path.is_relative_to(PACKAGE / room) for path in files[:1] for room in rooms)
    types = NameError | ImportError | SyntaxError | AssertionError
    return is_ours or is_in_user_code(error) or isinstance(error, types)


def is_users_mistake(error: BaseException) -> bool:
    """Return whether a check raised an error because a user's setting cannot work.

    A check of Lightning counts, too: it may raise any type, and its text says what is allowed.
    """
    if isinstance(error, InputError):
        return True
    statement = traceback.extract_tb(error.__traceback__)[-1]
    is_check = (statement.line or "").startswith("raise ")
    path = Path(statement.filename).as_posix()
    is_lightning = any(f"/{folder}/lightning/" in path for folder in LIBRARIES)
    return is_check and is_lightning and not is_in_user_code(error)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, then those that caused it, and so on to the first causes."""
    while error is not None:
        yield error
        for alternative in errors_of_union(error):
            yield from causes(alternative)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def raise_user_bug(error: BaseException) -> None:
    """If the user's own code caused an error that a library wrapped, raise the original."""
    for cause in causes(error):
        if is_in_user_code(cause) and not isinstance(cause, InputError):
            raise cause from None


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
