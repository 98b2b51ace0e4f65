"""Corpora for tests: reproducible texts in many scripts and with unusual Unicode characters."""

from collections.abc import Sequence
from itertools import chain

import numpy as np

SIZE = 6_000  # characters, approximately


def random_text(units: Sequence[str], size: int = SIZE, power: float = 1.0) -> str:
    """Return `size` shuffled units: each at least once, the frequencies following Zipf's law."""
    generator = np.random.default_rng(0)
    weights = 1 / np.arange(1, len(units) + 1) ** power
    more = generator.choice(len(units), max(0, size - len(units)), p=weights / weights.sum())
    order = generator.permutation(np.concatenate([np.arange(len(units)), more]))
    return "".join(units[i] for i in order)


def characters(*ranges: range) -> list[str]:
    return [chr(code) for code in chain(*ranges)]


CJK = [*characters(range(0x4E00, 0x4E00 + 8_000), range(0x20000, 0x20000 + 1_998)), "。", "\n"]
EMOJI = [
    "👋🏽", "👩🏿‍🔬", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇺🇳", "😀", "❤️", "🧑🏻‍🚀", "1️⃣", " ", "\n",
]  # fmt: skip
RIGHT_TO_LEFT = [
    "שָׁלוֹם", "בְּרֵאשִׁית", "مَرْحَبًا", "السَّلَامُ", "لا", " ", "\n", "123", "\u200f", "(", ")",
    "e\u0301\u0323\u0308\u0303", "a\u030a\u0332",
]  # fmt: skip
LINE_ENDS = ["one", "two", "\r\n", "\r", "\n", "\u2028", "\u2029", "\x85", "\v", "\f"]
CONTROLS = [*characters(range(0x20), range(0x7F, 0xA0)), "\ufeff", "\ufffe", "\uffff", "a", "b"]
EVERY_WIDTH = characters(
    range(0x7F), range(0x7C0, 0x800), range(0x800, 0x840), range(0xE000, 0xE040),
    range(0xFFF0, 0x10040), range(0x10FFC0, 0x110000),
)  # fmt: skip

TEXTS = {
    "ten thousand characters": random_text(CJK, 20_000),
    "emoji": random_text(EMOJI, 2_000, power=0.0),
    "right to left": random_text(RIGHT_TO_LEFT, 2_000, power=0.0),
    "ends of lines": random_text(LINE_ENDS, 2_000, power=0.0),
    "controls": random_text(CONTROLS),
    "every width": random_text(EVERY_WIDTH),
    "one letter": "a" * SIZE,
    "two letters": random_text("ab", power=0.0),
}
