"""A play from a small grammar of our own, whose entropy is known: the corpus `sample`.

The text has Tiny Shakespeare's form: speaker and colon, lines, blank line. Each line is a row of
slots; at each slot one of a few options is drawn. No two options of a slot begin with the same
character, so the text says which was drawn at that character, and all the others of the option are
certain: the exact loss of a reader who knows the grammar is -log p at the first character of each
option and 0 elsewhere. No model can do better but by luck.

What an option may be depends on the line's subject (singular or plural), so that a bigram table
must do worse than a model that remembers.
"""

import hashlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

SEED = 20  # of the text; it is one fixed play, of any length
LINES_PER_CHUNK = 1 << 15

# Each option is drawn in proportion to its number.
TURN = {"": 3, "\n": 1}
SPEAKERS = {"ANSELM:\n": 8, "BEATA:\n": 6, "CORVIN:\n": 5, "DOROTHY:\n": 4, "EDMUND:\n": 3}
SPEAKERS |= {"First Clerk:\n": 3, "GRISELDA:\n": 2, "Messenger:\n": 1}
SINGULAR = {"Autumn ": 6, "Beauty ": 5, "Courage ": 4, "Dust ": 3, "Envy ": 2, "Fortune ": 2}
PLURAL = {"Kings ": 6, "Lovers ": 5, "Merchants ": 4, "Old men ": 3, "Poets ": 2, "We ": 2}
VERBS = {"answer": 6, "build": 5, "carr": 4, "drown": 3, "envy": 2, "follow": 2, "guard": 1}
OBJECTS = {"all ": 4, "every ": 3, "her ": 5, "my ": 6, "no ": 2, "the ": 8, "your ": 4}
NOUNS = {"anchor": 5, "bell": 4, "crown": 6, "door": 5, "empire": 2, "fire": 4, "garden": 3}
NOUNS |= {"harbour": 2, "island": 1, "jewel": 1, "kingdom": 3, "lantern": 1, "mirror": 1}
ENDS = {".\n": 8, ",\n": 6, "!\n": 2, ";\n": 2, "?\n": 1}


class Options:
    """The options of one slot: their bytes, log-probabilities, and the thresholds to draw them."""

    def __init__(self, weights: dict[str, int], first_word: int) -> None:
        self.words = [text.encode() for text in weights]
        self.first_word = first_word
        total = sum(weights.values())
        edges = np.cumsum([0, *weights.values()], dtype=np.uint64) * np.uint64(1 << 32)
        self.edges = edges // np.uint64(total)
        # From the edges, not from the weights: exact to the last bit of what is really drawn.
        self.losses = -np.log(np.diff(self.edges).astype(np.float64) / 2**32)

    def draw(self, random: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Numbers of the words that 64 random bits each choose."""
        chosen = np.searchsorted(self.edges[1:-1], random >> np.uint64(32), side="right")
        return chosen + self.first_word


def _agreeing(singular: bool) -> tuple[dict[str, int], dict[str, int]]:
    """Verbs and ends that agree with the subject: `answers`, but `answer`; `its`, but `their`."""
    forms = {"carr": ("carries", "carry"), "envy": ("envies", "envy")}
    verbs = {}
    for stem, weight in VERBS.items():
        one, many = forms.get(stem, (stem + "s", stem))
        verbs[(one if singular else many) + " "] = weight
    return verbs, ENDS | {f" for {'its' if singular else 'their'} own sake.\n": 4}


class Grammar:
    """All slots, and every option's bytes and loss in tables indexed by word number."""

    def __init__(self) -> None:
        self.words, self.losses = [b""], [0.0]  # word 0: nothing, and no choice made
        self.turn, self.speaker = self._add(TURN), self._add(SPEAKERS)
        # One slot draws singular or plural along with the subject itself.
        self.subject = self._add(SINGULAR | PLURAL)
        agreeing = [_agreeing(singular) for singular in (True, False)]
        self.verbs = [self._add(verbs) for verbs, _ in agreeing]
        self.ends = [self._add(ends) for _, ends in agreeing]
        self.object, self.noun = self._add(OBJECTS), self._add(NOUNS)
        self.first_plural = self.subject.first_word + len(SINGULAR)
        self.lengths = np.array([len(word) for word in self.words])
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.bytes = np.frombuffer(b"".join(self.words), dtype=np.uint8)
        self.word_losses = np.array(self.losses)

    def _add(self, weights: dict[str, int]) -> Options:
        options = Options(weights, first_word=len(self.words))
        self.words += options.words
        self.losses += list(options.losses)
        return options

    def lines(self, bits: NDArray[np.uint64], first: bool) -> NDArray[np.int64]:
        """Word numbers (lines, 7) from random bits of the same shape."""
        turn = self.turn.draw(bits[:, 0])
        new_turn = turn == self.turn.first_word + 1
        if first:  # the play opens with a speaker, and no blank line before
            turn[0], new_turn[0] = 0, True
        speaker = np.where(new_turn, self.speaker.draw(bits[:, 1]), 0)
        subject = self.subject.draw(bits[:, 2])
        plural = subject >= self.first_plural
        verb, end = (
            np.where(plural, two[1].draw(bits[:, slot]), two[0].draw(bits[:, slot]))
            for two, slot in ((self.verbs, 3), (self.ends, 6))
        )
        middle = self.object.draw(bits[:, 4]), self.noun.draw(bits[:, 5])
        return np.stack([turn, speaker, subject, verb, *middle, end], axis=1)

    def chunks(self, size: int) -> Iterator[tuple[bytes, NDArray[np.int64], NDArray[np.float64]]]:
        """The first `size` characters in pieces, with the positions and losses of all choices.

        Positions count from the beginning of the play. The pieces depend on nothing but the seed:
        a longer play begins with the shorter one.
        """
        random = np.random.Philox(key=SEED)
        done = 0
        while done < size:
            bits = random.random_raw(LINES_PER_CHUNK * 7).reshape(-1, 7)
            words = self.lines(bits, first=done == 0).ravel()
            lengths = self.lengths[words]
            starts = np.cumsum(lengths) - lengths  # in this piece
            source = np.repeat(self.starts[words] - starts, lengths) + np.arange(lengths.sum())
            text = self.bytes[source[: size - done]].tobytes()
            yield text, starts + done, self.word_losses[words]
            done += len(text)


def write_play(file: BinaryIO, size: int) -> None:
    """Write the first `size` characters (one byte each) of the play."""
    for text, _, _ in Grammar().chunks(size):
        file.write(text)


def fingerprint() -> str:
    """What the play depends on, as a short name: a changed grammar is another play."""
    grammar = Grammar()
    tables = (SEED, LINES_PER_CHUNK, grammar.words, grammar.losses)
    return hashlib.sha256(repr(tables).encode()).hexdigest()[:16]


def play_log_loss(first: int, last: int) -> tuple[float, float]:
    """The loss of a reader who knows the grammar, over the characters first..last-1 of the play.

    Returns:
        Mean in nats per character, and its standard error: lines are drawn one by one, so it is
        that of a ratio of sums over lines, of loss to length.
    """
    loss, length = [], []
    for text, positions, losses in Grammar().chunks(last):
        inside = (positions >= first) & (positions < last)
        loss.append((losses * inside).reshape(-1, 7).sum(axis=1))
        edges = np.append(positions[::7], positions[0] + len(text)).clip(first, last)
        length.append(np.diff(edges))
    losses, lengths = np.concatenate(loss), np.concatenate(length)
    mean = losses.sum() / (last - first)
    error = np.sqrt(np.square(losses - mean * lengths).sum()) / (last - first)
    return float(mean), float(error)
