"""What a user got wrong, said so that they can put it right.

Everything that a user can mistype or misplace raises `InputError`; the command line prints its one
line and exits, without a traceback. All other exceptions are ours to mend and keep their traceback.
"""


class InputError(ValueError):
    """A user's mistake: the text names the value, what is allowed, and the fix."""


def require_positive(**values: int) -> None:
    """Raise `InputError` for the first value under 1, naming it."""
    for name, value in values.items():
        if value < 1:
            raise InputError(f"{name} is {value}: it must be at least 1.")


def require_dropout(dropout: float) -> None:
    """Raise `InputError` unless dropout is a probability under 1."""
    if not 0 <= dropout < 1:
        raise InputError(f"dropout is {dropout}: it must be at least 0 and under 1.")
