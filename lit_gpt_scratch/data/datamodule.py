"""`CharDataModule`: a text as training, validation and test batches for Lightning's Trainer."""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch

from lit_gpt_scratch.data.corpus import CorpusName, open_corpus
from lit_gpt_scratch.data.token_cache import load_tokens
from lit_gpt_scratch.data.tokenizer import CharTokenizer
from lit_gpt_scratch.data.windows import (
    Batch,
    Batches,
    Share,
    TrainWindows,
    Windows,
    consecutive_windows,
    evenly_spaced_windows,
    overlapping_windows,
    random_bits,
    require_divisible_batch,
    split_corpus,
    starts_in_passes,
)
from lit_gpt_scratch.errors import InputError, require_positive

MAX_CONTEXT, MAX_BATCH_TOKENS = 1 << 20, 1 << 28
MAX_TRAIN_SAMPLE = 262_144  # training characters that each validation evaluates at most


class CharDataModule(pl.LightningDataModule):
    """A text as batches of windows.

    Args:
        corpus: `tiny-shakespeare`, `sample` (built in), a text file or a folder of them, a list of
            files, or an https:// URL.
        context: Characters that the network sees at once.
        batch_size: Windows in a batch, over all devices together.
        val_fraction: Fraction of the corpus used for validation.
        test_fraction: Fraction used for the test, at the end of the text; 0: no test split.
        seed: Seed of the windows and of dropout; the default is `seed_everything`, or 1337.
        sha256: Expected SHA-256 of the corpus; the default is the checkpoint's, else no check.
        fallback: `sample`: use the built-in text if a download fails.
        sample_size: Characters of the built-in text.
        alphabet: Characters to encode with; the default is the checkpoint's, or the corpus' own.
        order: How training windows are drawn. passes: each window of the text once; the next pass
            begins at another position. random: each window on its own, as in nanoGPT.
        stride: Also evaluate in overlapping windows, which begin every `stride` characters. Each
            character, except the first ones, then has at least context - stride before it.

    Raises `InputError` for a value out of range. The corpus is opened later, by `open`.
    """

    def __init__(
        self,
        corpus: CorpusName = "tiny-shakespeare",
        context: int = 256,
        batch_size: int = 16,
        val_fraction: float = 0.1,
        test_fraction: float = 0.0,
        seed: int | None = None,
        sha256: str | None = None,
        fallback: Literal["sample"] | None = None,
        sample_size: int = 1_000_000,
        alphabet: str | None = None,
        order: Literal["passes", "random"] = "passes",
        stride: int | None = None,
    ) -> None:
        super().__init__()
        require_positive(context=context, batch_size=batch_size, sample_size=sample_size)
        if context > MAX_CONTEXT or context * batch_size > MAX_BATCH_TOKENS:
            raise InputError(
                f"context is {context} and batch_size is {batch_size}: a context must be at most "
                f"{MAX_CONTEXT:,}, and context times batch_size at most {MAX_BATCH_TOKENS:,}."
            )
        if order not in ("passes", "random"):
            raise InputError(f"order is {order!r}: it must be passes or random.")
        if stride is not None and not 1 <= stride < context:
            raise InputError(
                f"stride is {stride}: it must be at least 1 and below the context, {context}."
            )
        split_corpus(1, val_fraction, test_fraction)  # only to refuse wrong fractions now
        self.save_hyperparameters(logger=False)
        self.context, self.batch_size, self.order, self.stride = context, batch_size, order, stride
        self.seed = 1337 if seed is None else seed
        if not 0 <= self.seed < 1 << 32:
            raise InputError(f"seed is {self.seed}: it must be at least 0 and under 2**32.")
        self.tokens, self.fell_back = torch.empty(0), False
        self._alphabet = alphabet

    @property
    def alphabet(self) -> str:
        """The characters, sorted. Opens the corpus unless the alphabet was given."""
        if self._alphabet is None:
            self.open()
        assert self._alphabet is not None
        return self._alphabet

    @property
    def tokenizer(self) -> CharTokenizer:
        return CharTokenizer(self.alphabet)

    def open(self) -> None:
        """Open the corpus, encode it and split it, unless that is done already.

        Raises `InputError` if the corpus cannot be used or a split is too short for the context.
        """
        if len(self.tokens):
            return
        hparams: Any = self.hparams
        corpus = open_corpus(hparams.corpus, hparams.sha256, hparams.fallback, hparams.sample_size)
        self._alphabet, tokens = load_tokens(corpus, self._alphabet)
        self.splits = split_corpus(len(tokens), hparams.val_fraction, hparams.test_fraction)
        for name, split in vars(self.splits).items():
            if len(split) <= self.context and (split or name != "test"):
                raise InputError(
                    f"context is {self.context}, but the {name} split of {hparams.corpus!r} has "
                    f"{len(split)} characters: give a smaller --data.context or a longer corpus."
                )
        self.tokens, self.fell_back = tokens, corpus.fell_back
        # Save the corpus that was really used, for example `sample` after a failed download.
        hparams.update(corpus=corpus.name, sha256=corpus.sha256, alphabet=self._alphabet)
        hparams.update(seed=self.seed, fallback=None)

    def setup(self, stage: str) -> None:
        if stage != "predict":
            self.open()
        if stage == "test" and not self.splits.test:
            raise InputError(
                "there is no test split: train with --data.test_fraction 0.1, or use validate."
            )

    def train_dataloader(self) -> Iterable[Windows]:
        """Return the batches of one epoch: as many windows as fill the training text once."""
        trainer: Any = self.trainer
        parts = trainer.accumulate_grad_batches if trainer else 1
        share = Share.of(trainer)
        require_divisible_batch(self.batch_size, share.world_size)
        steps = max(1, len(self.splits.train) // (self.context * self.batch_size * parts))

        def first() -> int:
            step = trainer.global_step if trainer else 0
            if trainer and trainer.overfit_batches:  # the same batches in every epoch
                step %= math.ceil(trainer.num_training_batches / parts)
            return step * parts

        return TrainWindows(partial(self.train_windows, parts=parts), first, steps * parts, share)

    def train_windows(self, k: int, parts: int = 1) -> Windows:
        """Draw the windows of batch k. The same seed and k give the same batch.

        With gradient accumulation, one optimizer step uses `parts` batches. Together they have the
        same windows as one batch of `parts * batch_size`.
        """
        step, part = divmod(k, parts)
        size, length = self.batch_size, len(self.splits.train)
        is_random = self.order == "random"
        integers = random_bits(self.seed, step, 1 + parts * size * is_random)
        if not is_random:
            starts = starts_in_passes(k * size, size, length, self.context, self.seed)
        else:
            start_count = np.uint64(length - self.context)
            rows = integers[1 + part * size :][:size]
            starts = torch.from_numpy((rows % start_count).astype(np.int64))
        dropout_seed = int(integers[0] >> np.uint64(1)) + (part << 32)  # each part has its own
        return Windows(starts, self.context, dropout_seed, "train")

    def val_dataloader(self) -> Iterable[Windows]:
        val, how = self.splits.val, (self.context, len(self.alphabet), Share.of(self.trainer))
        count = min(len(val) // 4, MAX_TRAIN_SAMPLE)  # training characters, for `val/gap`
        sample = evenly_spaced_windows(self.splits.train, "train sample", count, *how)
        return Batches([*consecutive_windows(val, "val", *how), *sample, *self._strided("val")])

    def test_dataloader(self) -> Iterable[Windows]:
        how = self.context, len(self.alphabet), Share.of(self.trainer)
        windows = consecutive_windows(self.splits.test, "test", *how)
        return Batches([*windows, *self._strided("test")])

    def _strided(self, name: str) -> Iterable[Windows]:
        """Return the windows of the strided evaluation. `fit` has none: they take long."""
        if self.stride is None or (self.trainer and self.trainer.state.fn == "fit"):
            return ()
        how = self.stride, self.context, len(self.alphabet), Share.of(self.trainer)
        return overlapping_windows(vars(self.splits)[name], f"{name}_strided", *how)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return self.read_windows(batch) if isinstance(batch, Windows) else batch

    def read_windows(self, windows: Windows) -> Batch:
        """Read the characters of windows: starts (B,) to inputs and targets (B, T).

        On a GPU, the corpus is moved there once.
        """
        device = windows.starts.device
        self.tokens = self.tokens.to(device)
        offsets = torch.arange(windows.length + 1, device=device)
        ids = self.tokens[windows.starts[:, None] + offsets].long()
        counted = windows.counted
        if counted is not None:  # to a mask (B, T)
            counted = offsets[:-1] >= windows.length - counted[:, None]
        return Batch(ids[:, :-1], ids[:, 1:], windows.seed, windows.split, counted)
