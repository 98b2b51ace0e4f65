"""`visible` replaces characters that cannot be seen."""

import sys

from lit_gpt_scratch.inspection import visible


def test_every_character_becomes_one_printable_character_other_than_a_space() -> None:
    """For all of Unicode, except surrogates, which no text holds."""
    text = "".join(chr(i) for i in range(sys.maxunicode + 1) if not 0xD800 <= i < 0xE000)
    shown = visible(text)
    assert len(shown) == len(text)
    assert shown.isprintable()
    assert " " not in shown
    assert all(
        new in (old, "�") for old, new in zip(text, shown, strict=True) if old not in "\n\t\r "
    )


def test_whitespace_gets_signs_of_its_own() -> None:
    assert visible("a\r\n\t b\x1b") == "a↵⏎⇥␣b�"
