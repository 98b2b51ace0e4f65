"""The data module: splits, windows, and which rank sees which of them when.

Shapes: B batch (this rank's rows), T time (the context; shorter in the last window of a split).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_gpt_scratch.data.corpus import open_corpus
from lit_gpt_scratch.data.token_cache import load_tokens
from lit_gpt_scratch.data.tokenizer import CharTokenizer
from lit_gpt_scratch.errors import InputError, require_positive

# Of a batch that is evaluated, at most; the result does not depend on them.
EVALUATION_TOKENS, EVALUATION_LOGITS = 1 << 13, 1 << 24
SLICE_TOKENS = 1 << 18  # at most, of the training split, to compare validation with
MOST_CONTEXT = 1 << 20
MOST_TOKENS = 1 << 28  # a training batch


class Windows(NamedTuple):
    """What crosses to the device: where windows start, not what they hold.

    Attributes:
        starts: (B,) int64, positions in the corpus.
        length: T.
        seed: Of this batch's dropout, before the rank is mixed in.
        split: What the windows are from.
    """

    starts: Tensor
    length: int
    seed: int
    split: str


class Batch(NamedTuple):
    """Inputs and targets, both (B, T) int64: the target of a position is the next character."""

    inputs: Tensor
    targets: Tensor
    seed: int
    split: str


@dataclass(frozen=True)
class Splits:
    """Positions of the training, validation and test text in the corpus."""

    train: range
    val: range
    test: range


def split_corpus(size: int, val_fraction: float, test_fraction: float) -> Splits:
    """Consecutive parts, in the order training, validation, test.

    Raises:
        InputError: A fraction is out of range, or leaves nothing to train on.
    """
    if not (0 < val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
        raise InputError(
            f"val_fraction is {val_fraction} and test_fraction is {test_fraction}: the first must "
            "be above 0, the second at least 0, and their sum under 1."
        )
    train = int(size * round(1 - val_fraction - test_fraction, 9))
    val = int(size * round(1 - test_fraction, 9))
    return Splits(range(train), range(train, val), range(val, size))


def windows_at_once(length: int, alphabet_size: int) -> int:
    """How many windows of that length are evaluated together: their logits have to fit."""
    return max(1, min(EVALUATION_TOKENS, EVALUATION_LOGITS // alphabet_size) // length)


def check_processes(batch_size: int, world: int) -> None:
    """Raise `InputError` unless the processes can share a batch out evenly."""
    if batch_size % world:
        raise InputError(
            f"batch_size is {batch_size}, over all devices together, and there are {world}: "
            "it must be a multiple of them."
        )


def random_bits(seed: int, k: int, count: int) -> NDArray[np.uint64]:
    """Random numbers that are a pure function of (seed, k), whatever was drawn before.

    Philox is a counter-based generator (Salmon et al. 2011): any k costs the same. Its raw bits
    are stable across NumPy versions.
    """
    return np.random.Philox(key=np.array([seed, k], dtype=np.uint64)).random_raw(count)


class TrainWindows:
    """An endless row of random windows, counted from batch `first`, in `parts` to a step.

    Batch k holds this rank's rows of the global batch k, which is a pure function of (seed, k).
    """

    def __init__(
        self, module: "CharDataModule", first: int, rank: int, world: int, parts: int
    ) -> None:
        self.module, self.first, self.share = module, first, (rank, world, parts)

    def __iter__(self) -> Iterator[Windows]:
        k = self.first
        while True:
            yield self.module.train_windows(k, *self.share)
            k += 1


class Batches:
    """A fixed row of batches. (Lightning takes a plain list for several loaders.)"""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = list(batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class CharDataModule(pl.LightningDataModule):
    """A text as batches of windows.

    Args:
        corpus: `tiny-shakespeare`, `sample` (built in), a text file's path, or an https:// URL.
        context: Characters that the network sees at once.
        batch_size: Windows in a batch, over all devices together.
        val_fraction: Part of the corpus kept for validation.
        test_fraction: Part after it kept for the test; 0: none.
        seed: Of the windows and of dropout; the default is `seed_everything`.
        sha256: What the corpus must hash to; the default accepts any, but a checkpoint's own.
        fallback: `sample`: use the built-in text if a download fails.
        sample_size: Characters of the built-in text.
        alphabet: Characters to encode with; the default is a checkpoint's, or the corpus' own.

    Raises:
        InputError: A value out of range. The corpus is opened later, by `open`.
    """

    def __init__(
        self,
        corpus: str = "tiny-shakespeare",
        context: int = 256,
        batch_size: int = 16,
        val_fraction: float = 0.1,
        test_fraction: float = 0.0,
        seed: int | None = None,
        sha256: str | None = None,
        fallback: Literal["sample"] | None = None,
        sample_size: int = 1_000_000,
        alphabet: str | None = None,
    ) -> None:
        super().__init__()
        require_positive(context=context, batch_size=batch_size, sample_size=sample_size)
        if context > MOST_CONTEXT or context * batch_size > MOST_TOKENS:
            raise InputError(
                f"context is {context} and batch_size is {batch_size}: the first must be at most "
                f"{MOST_CONTEXT:,}, and their product {MOST_TOKENS:,}."
            )
        split_corpus(1, val_fraction, test_fraction)
        self.save_hyperparameters(logger=False)
        self.context = context
        self.batch_size = batch_size
        self.seed = 1337 if seed is None else seed
        if not 0 <= self.seed < 1 << 32:
            raise InputError(f"seed is {self.seed}: it must be at least 0 and under 2**32.")
        self.tokens = torch.empty(0)
        self.fell_back = False
        self._alphabet = alphabet

    @property
    def alphabet(self) -> str:
        """The characters; a checkpoint's are known without its corpus."""
        if self._alphabet is None:
            self.open()
        assert self._alphabet is not None
        return self._alphabet

    @property
    def tokenizer(self) -> CharTokenizer:
        return CharTokenizer(self.alphabet)

    def open(self) -> None:
        """Find the corpus, encode it if it is new, and check that the context fits.

        Raises:
            InputError: The corpus cannot be had, or is too short.
        """
        if len(self.tokens):
            return
        wanted: Any = self.hparams
        corpus = open_corpus(wanted.corpus, wanted.sha256, wanted.fallback, wanted.sample_size)
        self._alphabet, tokens = load_tokens(corpus, self._alphabet)
        self.splits = split_corpus(len(tokens), wanted.val_fraction, wanted.test_fraction)
        for name, part in vars(self.splits).items():
            if len(part) <= self.context and (part or name != "test"):
                raise InputError(
                    f"context is {self.context}, but the {name} split of {wanted.corpus!r} has "
                    f"{len(part)} characters: give a smaller --data.context or a longer corpus."
                )
        self.tokens = tokens
        self.fell_back = corpus.fell_back
        # What a checkpoint remembers is what was used, not only what was asked for.
        wanted.update(corpus=corpus.name, sha256=corpus.sha256, alphabet=self._alphabet)
        wanted.update(seed=self.seed, fallback=None)

    def setup(self, stage: str) -> None:
        if stage != "predict":
            self.open()
        if stage == "test" and not self.splits.test:
            raise InputError(
                "there is no test split: train with --data.test_fraction 0.1, or use validate."
            )

    def train_dataloader(self) -> Iterable[Windows]:
        # Counted from the optimizer's steps, so that a resumed run goes on at the next batch: this
        # method runs after the loops' state is restored.
        trainer = self.trainer
        assert trainer is not None
        check_processes(self.batch_size, trainer.world_size)
        parts = trainer.accumulate_grad_batches
        first = trainer.global_step * parts
        return TrainWindows(self, first, trainer.global_rank, trainer.world_size, parts)

    def train_windows(self, k: int, rank: int = 0, world: int = 1, parts: int = 1) -> Windows:
        """A rank's rows of the global batch number k.

        Batches that are accumulated are the parts of one larger batch, which is drawn at once: a
        step learns from the same windows, however many batches it takes.
        """
        step, part = divmod(k, parts)
        bits = random_bits(self.seed, step, parts * self.batch_size + 1)
        rows = bits[1 + part * self.batch_size :][: self.batch_size]
        places = np.uint64(len(self.splits.train) - self.context)
        starts = (rows[rank::world] % places).astype(np.int64)
        seed = int(bits[0] >> np.uint64(1)) + (part << 32)  # ranks are added to it
        return Windows(torch.from_numpy(starts), self.context, seed, "train")

    def val_dataloader(self) -> Iterable[Windows]:
        return Batches([*self._exact(self.splits.val, "val"), *self._slice_of_train()])

    def test_dataloader(self) -> Iterable[Windows]:
        return Batches(self._exact(self.splits.test, "test"))

    def _exact(self, part: range, split: str) -> Iterator[Windows]:
        """Windows side by side: each character but the first is predicted exactly once."""
        whole = len(part) - 1 - (len(part) - 1) % self.context
        world = self.trainer.world_size if self.trainer else 1
        if whole // self.context < world:  # a process without any would wait for ever
            raise InputError(
                f"the {split} split has {len(part)} characters, too few for {world} processes: "
                "use fewer devices or a smaller --data.context."
            )
        starts = torch.arange(part.start, part.start + whole, self.context)
        yield from self._batches(starts, self.context, split)
        if whole < len(part) - 1:
            ragged = torch.tensor([part.start + whole])
            yield from self._batches(ragged, len(part) - 1 - whole, split)

    def _slice_of_train(self) -> Iterator[Windows]:
        """Evenly spread windows of the training split, a quarter as many as validation's."""
        size = len(self.splits.train) - 1
        count = max(1, min(len(self.splits.val) // 4, SLICE_TOKENS, size) // self.context)
        starts = torch.arange(count) * ((size - self.context) // max(1, count - 1))
        yield from self._batches(starts, self.context, "train slice")

    def _batches(self, starts: Tensor, length: int, split: str) -> Iterator[Windows]:
        rank, world = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        )
        for rows in torch.split(starts[rank::world], windows_at_once(length, len(self.alphabet))):
            if len(rows):
                yield Windows(rows, length, 0, split)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return self.gather(batch) if isinstance(batch, Windows) else batch

    def gather(self, windows: Windows) -> Batch:
        """Read the windows, where their starts are: on a GPU, from a copy of the corpus there."""
        device = windows.starts.device
        if self.tokens.device != device:
            self.tokens = self.tokens.to(device)
        offsets = torch.arange(windows.length + 1, device=device)
        ids = self.tokens[windows.starts[:, None] + offsets].long()
        return Batch(ids[:, :-1], ids[:, 1:], windows.seed, windows.split)
