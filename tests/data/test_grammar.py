"""Tests of `grammar.py`: the play follows the grammar, and no model falls below its lowest loss.

The reference here parses the text one option at a time; it shares only the tables of options with
the code that writes the play.
"""

import contextlib
import hashlib
import io
import math
import re
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from lit_gpt_scratch.data import grammar
from lit_gpt_scratch.data.datamodule import CharDataModule
from lit_gpt_scratch.data.grammar import play_log_loss, write_play
from lit_gpt_scratch.models import ModernGPT
from lit_gpt_scratch.training import Muon, WarmupStableDecay
from lit_gpt_scratch.training.optim import parameter_groups

SIZE = 1_300_000  # more than one chunk

SINGULAR_VERBS = {  # written out, to test the grammar's rule
    "answers ": 6, "builds ": 5, "carries ": 4, "drowns ": 3, "envies ": 2, "follows ": 2,
    "guards ": 1,
}  # fmt: skip
PLURAL_VERBS = {
    "answer ": 6, "build ": 5, "carry ": 4, "drown ": 3, "envy ": 2, "follow ": 2, "guard ": 1,
}  # fmt: skip
SLOTS = {
    "turn": grammar.TURN,
    "speaker": grammar.SPEAKERS,
    "subject": grammar.SINGULAR | grammar.PLURAL,
    "singular verb": SINGULAR_VERBS,
    "plural verb": PLURAL_VERBS,
    "object": grammar.OBJECTS,
    "noun": grammar.NOUNS,
    "singular end": grammar.ENDS | {" for its own sake.\n": 4},
    "plural end": grammar.ENDS | {" for their own sake.\n": 4},
}


def play(size: int) -> bytes:
    file = io.BytesIO()
    write_play(file, size)
    return file.getvalue()


class Parsed(NamedTuple):
    losses: np.ndarray  # (SIZE,), in nats per character
    choices: dict[str, Counter[str]]  # how often each option of a slot occurs


def parse(text: str) -> Parsed:
    """Parse a play option by option."""
    losses = np.zeros(len(text))
    choices: dict[str, Counter[str]] = {slot: Counter() for slot in SLOTS}
    at = 0

    def choose(slot: str) -> str:
        nonlocal at
        options = SLOTS[slot]
        named = [option for option in options if option and option[0] == text[at]]
        option = named[0] if named else ""
        assert text.startswith(option[: len(text) - at], at), f"at {at}: not in the grammar"
        losses[at] += math.log(sum(options.values()) / options[option])
        choices[slot][option] += 1
        at += len(option)
        return option

    def line() -> None:
        if at == 0 or choose("turn"):
            choose("speaker")
        number = "singular" if choose("subject") in grammar.SINGULAR else "plural"
        for slot in (f"{number} verb", "object", "noun", f"{number} end"):
            choose(slot)

    with contextlib.suppress(IndexError):  # the text's end
        while True:
            line()
    return Parsed(losses, choices)


@pytest.fixture(scope="module")
def text() -> str:
    return play(SIZE).decode("ascii")


@pytest.fixture(scope="module")
def parsed(text: str) -> Parsed:
    return parse(text)


def test_the_play_never_changes() -> None:
    first = play(100_000)
    assert first == play(100_000)
    pinned = "99f3a2cdf0dd1819fffb4549c4258f524516c8467a915e4f3049051e7bbd816e"
    assert hashlib.sha256(first).hexdigest() == pinned


@given(size=st.integers(0, SIZE))
def test_a_shorter_play_is_the_beginning_of_a_longer_one(text: str, size: int) -> None:
    assert play(size).decode("ascii") == text[:size]


def test_the_play_has_the_form_of_tiny_shakespeare(text: str) -> None:
    """Speaker and colon, lines, blank line; verb and end agree with the subject."""

    def one_of(options: dict[str, int]) -> str:
        return "(?:" + "|".join(map(re.escape, options)) + ")"

    lines = [
        "".join(map(one_of, (subjects, SLOTS[f"{number} verb"], grammar.OBJECTS, grammar.NOUNS)))
        + one_of(SLOTS[f"{number} end"])
        for number, subjects in (("singular", grammar.SINGULAR), ("plural", grammar.PLURAL))
    ]
    speech = f"{one_of(grammar.SPEAKERS)}(?:{lines[0]}|{lines[1]})+"
    complete = text[: text.rindex("\n\n") + 1]  # without the last speech, which may be cut short
    assert re.fullmatch(rf"{speech}(?:\n{speech})*", complete)
    assert all(
        re.fullmatch(r"\w[\w ]*:", speech.split("\n")[0]) for speech in complete.split("\n\n")
    )


@pytest.mark.parametrize("slot", SLOTS)
def test_no_two_options_of_a_slot_begin_with_the_same_character(slot: str) -> None:
    """Nor does the option after an empty one: the first character identifies the option."""
    options = SLOTS[slot]
    first = [option[0] for option in options if option]
    if "" in options:
        first += [option[0] for option in SLOTS["subject"]]
    assert len(first) == len(set(first))


def test_options_occur_in_proportion_to_their_weights(parsed: Parsed) -> None:
    """Within five standard deviations."""
    for slot, options in SLOTS.items():
        drawn, total = parsed.choices[slot].total(), sum(options.values())
        assert drawn > 10_000
        for option, weight in options.items():
            p = weight / total
            deviation = (parsed.choices[slot][option] - drawn * p) / math.sqrt(drawn * p * (1 - p))
            assert abs(deviation) < 5, (slot, option)


@given(st.lists(st.integers(0, SIZE), min_size=2, max_size=2, unique=True).map(sorted))
def test_play_log_loss_is_the_loss_of_a_parser(parsed: Parsed, part: list[int]) -> None:
    """For any part, also one that begins or ends within a word."""
    losses = parsed.losses[part[0] : part[1]]
    assert play_log_loss(*part)[0] == pytest.approx(losses.mean(), rel=1e-7, abs=1e-12)


def test_the_standard_error_is_calibrated(parsed: Parsed) -> None:
    """The parts of the play deviate from its mean by about the reported error."""
    overall = parsed.losses.mean()
    parts = [play_log_loss(first, first + 10_000) for first in range(0, SIZE, 50_000)]
    deviations = [(mean - overall) / error for mean, error in parts]
    assert 0.7 < np.std(deviations) < 1.4


class Trained(NamedTuple):
    losses: np.ndarray  # of every target of the validation split
    known: np.ndarray  # number of characters before it in its window
    characters: range  # positions of the targets in the play


@pytest.fixture(scope="module")
def trained() -> Trained:
    """Train a small model for 250 steps on the sample."""
    data = CharDataModule("sample", context=128, batch_size=16)
    data.open()
    torch.manual_seed(1)
    net = ModernGPT(len(data.alphabet), data.context, layers=1, width=64)
    optimizer = Muon(parameter_groups(net))
    schedule = WarmupStableDecay(optimizer, steps=250)
    for k in range(250):
        batch = data.read_windows(data.train_windows(k))
        optimizer.zero_grad()
        F.cross_entropy(net(batch.inputs).flatten(0, 1), batch.targets.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    characters = data.splits.val[1:]
    losses, known = np.full(len(characters), np.nan), np.zeros(len(characters), dtype=int)
    for windows in data.val_dataloader():
        if windows.split == "val":
            batch = data.read_windows(windows)
            with torch.no_grad():
                logits = net(batch.inputs).transpose(1, 2)
            at = windows.starts[:, None] + torch.arange(windows.length) - data.splits.val.start
            losses[at] = F.cross_entropy(logits, batch.targets, reduction="none")
            known[at] = np.arange(1, windows.length + 1)
    return Trained(losses, known, characters)


def test_a_trained_model_comes_near_the_lowest_loss_but_not_below(trained: Trained) -> None:
    """Most of the rest is lost where windows begin in the middle of a line."""
    lowest, error = play_log_loss(trained.characters.start, trained.characters.stop)
    assert lowest - 3 * error < trained.losses.mean() < 1.1 * lowest


def test_with_enough_context_a_trained_model_reaches_the_lowest_loss_but_not_below(
    trained: Trained, parsed: Parsed
) -> None:
    """Compared character by character, so that chance affects both in the same way."""
    informed = trained.known > 48
    lowest = parsed.losses[trained.characters.start : trained.characters.stop][informed]
    above = trained.losses[informed] - lowest
    assert -3 * above.std() / math.sqrt(len(above)) < above.mean() < 0.04 * lowest.mean()
