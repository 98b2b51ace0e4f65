"""`predict`: reads prompts, batches them, and prints texts while they are generated."""

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from lit_gpt_scratch.data.text_files import read_text
from lit_gpt_scratch.data.tokenizer import CharTokenizer
from lit_gpt_scratch.errors import InputError, require_positive
from lit_gpt_scratch.generation import Prompts, SamplingSettings, default_prompt

MAX_BATCH = 64  # texts whose caches are in memory together


@dataclass(frozen=True)
class PredictSettings(SamplingSettings):
    """What to continue, and how.

    Attributes:
        prompt: Text to continue; empty: a new line.
        prompt_file: A text file with a prompt on each line, instead of `prompt`; `-`: standard
            input.
        num_samples: Number of texts for each prompt.
        stop: End a text before this string, where it occurs.
        seed: Seed of the random draws; the default is seed_everything.
    """

    temperature: float = 0.8
    seed: int | None = None  # type: ignore[assignment]
    prompt: str = ""
    prompt_file: str | None = None
    num_samples: int = 1
    stop: str = ""


def make_batches(
    tokenizer: CharTokenizer,
    settings: PredictSettings,
    seed: int,
    writer: "TextWriter | None" = None,
) -> list[Prompts]:
    """Encode the prompts and batch those of one length, unpadded.

    `seed` is used unless the settings have one. The writer prints the texts of each batch. Raise
    InputError if a setting is out of range or a character is unknown.
    """
    require_positive(num_samples=settings.num_samples)
    count, size = settings.num_samples, len(tokenizer)
    if settings.top_k is not None and settings.top_k > size:
        print(
            f"Notice: top_k is {settings.top_k}, but the alphabet has {size} characters: top_k has "
            "no effect.",
            file=sys.stderr,
        )
    encode(tokenizer, settings.stop, "stop")  # checks its characters
    texts = []  # the prompt of each text, with the number of the text
    for i, prompt in enumerate(read_prompts(settings)):
        place = f"line {i + 1} of {settings.prompt_file}" if settings.prompt_file else "prompt"
        ids = encode(tokenizer, prompt or default_prompt(tokenizer), place)
        texts += [(ids, index) for index in range(i * count, (i + 1) * count)]
    sampling = settings if settings.seed is not None else replace(settings, seed=seed)
    output = (writer.print_piece, writer.print_texts) if writer else ()
    return [Prompts(*group, sampling, settings.stop, *output) for group in group_by_length(texts)]


def encode(tokenizer: CharTokenizer, text: str, place: str) -> torch.Tensor:
    """Return the ids (T,) of a text; the error for an unknown character names its place."""
    try:
        return tokenizer.encode(text)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def group_by_length(
    texts: Sequence[tuple[torch.Tensor, int]],
) -> Iterator[tuple[torch.Tensor, list[int]]]:
    """Yield ids (B, T) of one length with their numbers, in the order in which lengths appear."""
    by_length = defaultdict(list)
    for ids, index in texts:
        by_length[len(ids)].append((ids, index))
    for same_length in by_length.values():
        for start in range(0, len(same_length), MAX_BATCH):
            batch, indices = zip(*same_length[start : start + MAX_BATCH], strict=True)
            yield torch.stack(batch), list(indices)


def read_prompts(settings: PredictSettings) -> list[str]:
    """Return the prompt, or the lines of the prompt file; raise InputError if it is unreadable."""
    if settings.prompt_file is None:
        return [settings.prompt]
    if settings.prompt:
        raise InputError("prompt and prompt_file are both given: leave one of them out.")
    try:
        text = read_text(settings.prompt_file, f"prompt_file {settings.prompt_file}")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, RuntimeError) as error:  # RuntimeError: the home folder of an unknown user
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"prompt_file {settings.prompt_file} cannot be read: {reason}.") from error
    if not text:
        raise InputError(f"prompt_file {settings.prompt_file} is empty: write a prompt per line.")
    return text.removesuffix("\n").split("\n")  # splitlines would split at eight more characters


class TextWriter:
    """Prints the texts, and nothing else, to standard output in the order of the prompts.

    The first text appears character by character while it is generated, the others when they are
    complete.
    """

    def __init__(self) -> None:
        self._complete: dict[int, str] = {}  # texts that wait for those before them
        self._next = 0  # number of the text to print
        self._printed = 0  # characters of it that are printed

    def print_piece(self, index: int, piece: str) -> None:
        """Print a piece of a text if all texts before it are printed."""
        if index == self._next:
            rule = f"\n{'-' * 80}\n" if self._next and not self._printed else ""
            print(rule + piece, end="", flush=True)
            self._printed += len(piece)

    def print_texts(self, indices: Sequence[int], texts: Sequence[str]) -> None:
        """Print complete texts, each as soon as all texts before it are printed."""
        self._complete |= dict(zip(indices, texts, strict=True))
        while self._next in self._complete:
            self.print_piece(self._next, self._complete.pop(self._next)[self._printed :])
            self._next, self._printed = self._next + 1, 0

    def end(self) -> None:
        """End the last line."""
        print(flush=True)
