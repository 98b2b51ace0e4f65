"""Replaces invisible characters by printable ones; for plots, pictures and reports."""

SIGNS = {"\n": "⏎", " ": "␣", "\t": "⇥", "\r": "↵"}
REPLACEMENT = "�"


def visible(text: str) -> str:
    """Return a text of the same length in which every character is printable.

    Whitespace becomes a sign of its own; every other unprintable character becomes `REPLACEMENT`.
    """
    return "".join(SIGNS.get(c, c if c.isprintable() else REPLACEMENT) for c in text)
