"""What `predict` continues and prints: prompts in batches, texts as they are made."""

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
from lit_gpt_scratch.training.module import LitCharLM, Prompts

TEXTS_AT_ONCE = 64  # their caches are in memory together


@dataclass(frozen=True)
class PredictSettings(SamplingSettings):
    """What to continue, and how.

    Attributes:
        prompt: Text to continue; empty: a new line.
        prompt_file: A UTF-8 text file with a prompt on each line, instead of `prompt`.
        num_samples: Number of texts for each prompt.
        stop: A text ends before this, where it writes it.
        seed: Of the draws; the default is seed_everything.
    """

    temperature: float = 0.8
    seed: int | None = None  # type: ignore[assignment]
    prompt: str = ""
    prompt_file: str | None = None
    num_samples: int = 1
    stop: str = ""


def prepare(model: LitCharLM, settings: PredictSettings, seed: int) -> Iterator[Prompts]:
    """Tell a model how to draw, and make its batches: prompts of one length each, unpadded.

    Raises:
        InputError: A setting is out of range, or a prompt has a character unknown to the model.
    """
    require_positive(num_samples=settings.num_samples)
    size = len(model.tokenizer)
    if settings.top_k is not None and settings.top_k > size:
        print(
            f"top_k is {settings.top_k}, the alphabet has {size} characters: all are drawn from.",
            file=sys.stderr,
        )
    values = {f.name: getattr(settings, f.name) for f in fields(SamplingSettings)}
    seed = seed if settings.seed is None else settings.seed
    model.sampling = SamplingSettings(**values | {"seed": seed})
    try:
        model.tokenizer.encode(settings.stop)
    except InputError as error:
        raise InputError(f"stop: {error}") from error
    model.stop = settings.stop
    prompts = []
    for i, prompt in enumerate(read_prompts(settings)):
        try:
            ids = model.tokenizer.encode(prompt or model.default_prompt)
        except InputError as error:
            where = f"line {i + 1} of {settings.prompt_file}" if settings.prompt_file else "prompt"
            raise InputError(f"{where}: {error}") from error
        count = settings.num_samples
        prompts += [(ids, index) for index in range(i * count, (i + 1) * count)]
    return batches(prompts)


def batches(prompts: Sequence[tuple[torch.Tensor, int]]) -> Iterator[Prompts]:
    """Numbered ids (T,), those of a length together, in the order of each length's first."""
    lengths = list(dict.fromkeys(len(ids) for ids, _ in prompts))
    ordered = sorted(prompts, key=lambda prompt: lengths.index(len(prompt[0])))
    for _, same in groupby(ordered, key=lambda prompt: len(prompt[0])):
        members = list(same)
        for start in range(0, len(members), TEXTS_AT_ONCE):
            ids, indices = zip(*members[start : start + TEXTS_AT_ONCE], strict=True)
            yield Prompts(torch.stack(ids), list(indices))


def read_prompts(settings: PredictSettings) -> list[str]:
    """The prompts asked for: one, or the lines of a file."""
    if settings.prompt_file is None:
        return [settings.prompt]
    if settings.prompt:
        raise InputError("prompt and prompt_file are both given: leave one of them out.")
    try:
        text = Path(settings.prompt_file).expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"prompt_file {settings.prompt_file} is not UTF-8 text.") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: the home of a user who is not there
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"prompt_file {settings.prompt_file} cannot be read: {reason}.") from error
    if not text:
        raise InputError(f"prompt_file {settings.prompt_file} is empty: write a prompt a line.")
    return text.removesuffix("\n").split("\n")  # splitlines knows eight more ends of a line


class TextWriter(BasePredictionWriter):
    """Prints predicted texts, and nothing else, to standard output, in the order of the prompts.

    The first text appears character by character as it is made, the others when they are done.
    """

    def __init__(self) -> None:
        super().__init__("batch")
        self._waiting: dict[int, str] = {}
        self._next = 0
        self._shown = 0  # characters of the next text

    def on_predict_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.watch = self._show

    def _show(self, index: int, piece: str) -> None:
        if index == self._next:
            self._write(piece)
            sys.stdout.flush()

    def _write(self, piece: str) -> None:
        if self._next and not self._shown:
            sys.stdout.write(f"\n{'-' * 80}\n")
        sys.stdout.write(piece)
        self._shown += len(piece)

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Sequence[str],
        batch_indices: Any,
        batch: Prompts,
        *_: Any,
    ) -> None:
        self._waiting |= dict(zip(batch.indices, prediction, strict=True))
        while self._next in self._waiting:
            self._write(self._waiting.pop(self._next)[self._shown :])
            self._next, self._shown = self._next + 1, 0
        sys.stdout.flush()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        sys.stdout.write("\n")
        sys.stdout.flush()
