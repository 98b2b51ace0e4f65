"""`predict`: reads prompts, batches them, and prints texts while they are generated."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BasePredictionWriter

from lit_gpt_scratch.errors import InputError, require_positive
from lit_gpt_scratch.generation.sampling import SamplingSettings
from lit_gpt_scratch.generation.text import OnText, Prompts, default_prompt
from lit_gpt_scratch.training.module import LitCharLM

MAX_BATCH = 64  # texts whose caches are in memory together


@dataclass(frozen=True)
class PredictSettings(SamplingSettings):
    """What to continue, and how.

    Attributes:
        prompt: Text to continue; empty: a new line.
        prompt_file: A UTF-8 text file with a prompt on each line, instead of `prompt`.
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
    model: LitCharLM, settings: PredictSettings, seed: int, on_text: OnText | None = None
) -> list[Prompts]:
    """Encode the prompts and batch those of one length, unpadded.

    Args:
        model: Gives the tokenizer.
        settings: Prompts, and how to sample.
        seed: Seed of the random draws, unless the settings have one.
        on_text: Receives the first text of each batch piece by piece.

    Raises:
        InputError: A setting is out of range, or a prompt has a character unknown to the model.
    """
    require_positive(num_samples=settings.num_samples)
    size = len(model.tokenizer)
    if settings.top_k is not None and settings.top_k > size:
        print(
            f"Notice: top_k is {settings.top_k}, but the alphabet has {size} characters: top_k has "
            "no effect.",
            file=sys.stderr,
        )
    values = {f.name: getattr(settings, f.name) for f in fields(SamplingSettings)}
    values["seed"] = seed if settings.seed is None else settings.seed
    sampling = SamplingSettings(**values)
    try:
        model.tokenizer.encode(settings.stop)
    except InputError as error:
        raise InputError(f"stop: {error}") from error
    groups = group_by_length(_encode_prompts(model, settings))
    return [Prompts(*group, sampling, settings.stop, on_text) for group in groups]


def _encode_prompts(model: LitCharLM, settings: PredictSettings) -> list[tuple[torch.Tensor, int]]:
    """Return the ids (T,) of each text's prompt, with the number of the text."""
    numbered = []
    for i, prompt in enumerate(read_prompts(settings)):
        try:
            ids = model.tokenizer.encode(prompt or default_prompt(model.tokenizer))
        except InputError as error:
            where = f"line {i + 1} of {settings.prompt_file}" if settings.prompt_file else "prompt"
            raise InputError(f"{where}: {error}") from error
        count = settings.num_samples
        numbered += [(ids, index) for index in range(i * count, (i + 1) * count)]
    return numbered


def group_by_length(
    numbered: Sequence[tuple[torch.Tensor, int]],
) -> Iterator[tuple[torch.Tensor, list[int]]]:
    """Yield ids (B, T) of one length with their numbers, in the order in which lengths appear."""
    lengths = list(dict.fromkeys(len(ids) for ids, _ in numbered))
    ordered = sorted(numbered, key=lambda text: lengths.index(len(text[0])))
    for _, same_length in groupby(ordered, key=lambda text: len(text[0])):
        texts = list(same_length)
        for start in range(0, len(texts), MAX_BATCH):
            ids, indices = zip(*texts[start : start + MAX_BATCH], strict=True)
            yield torch.stack(ids), list(indices)


def read_prompts(settings: PredictSettings) -> list[str]:
    """Return the prompt, or the lines of the prompt file.

    Raises:
        InputError: Both are given, or the file cannot be read.
    """
    if settings.prompt_file is None:
        return [settings.prompt]
    if settings.prompt:
        raise InputError("prompt and prompt_file are both given: leave one of them out.")
    try:
        text = Path(settings.prompt_file).expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"prompt_file {settings.prompt_file} is not UTF-8 text.") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: the home folder of an unknown user
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"prompt_file {settings.prompt_file} cannot be read: {reason}.") from error
    if not text:
        raise InputError(f"prompt_file {settings.prompt_file} is empty: write a prompt per line.")
    return text.removesuffix("\n").split("\n")  # splitlines would split at eight more characters


class TextWriter(BasePredictionWriter):
    """Prints the texts, and nothing else, to standard output in the order of the prompts.

    The first text appears character by character while it is generated, the others when they are
    complete.
    """

    def __init__(self) -> None:
        super().__init__("batch")
        self._complete: dict[int, str] = {}  # texts that wait for those before them
        self._next = 0  # number of the text to print
        self._printed = 0  # characters of it that are printed

    def print_piece(self, index: int, piece: str) -> None:
        """Print a piece of a text if all texts before it are printed."""
        if index == self._next:
            self._print(piece)
            sys.stdout.flush()

    def _print(self, piece: str) -> None:
        if self._next and not self._printed:
            sys.stdout.write(f"\n{'-' * 80}\n")
        sys.stdout.write(piece)
        self._printed += len(piece)

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Sequence[str],
        batch_indices: Any,
        batch: Prompts,
        *_: Any,
    ) -> None:
        self._complete |= dict(zip(batch.indices, prediction, strict=True))
        while self._next in self._complete:
            self._print(self._complete.pop(self._next)[self._printed :])
            self._next, self._printed = self._next + 1, 0
        sys.stdout.flush()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        sys.stdout.write("\n")
        sys.stdout.flush()
