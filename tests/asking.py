"""Callbacks that tests add to processes of the command line: `--trainer.callbacks+=asking.Ask`."""

import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor


class Ask(pl.Callback):
    """Sends a signal in the middle of a step, as a user or a cluster would.

    Args:
        step: Of the optimizer, counted from 0.
        rank: Which process sends it, and gets it.
        name: Of the signal.
        group: Whether all processes of the job get it, as from Ctrl-C.
    """

    def __init__(
        self, step: int, rank: int = 0, name: str = "SIGTERM", group: bool = False
    ) -> None:
        self.step, self.rank = step, rank
        self.number = getattr(signal, name)
        self.group = group

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if (trainer.global_step, trainer.global_rank) == (self.step, self.rank):
            if self.group:
                os.killpg(os.getpgrp(), self.number)
            else:
                os.kill(os.getpid(), self.number)


class Note(pl.Callback):
    """Keeps all that each process learns from, (steps, B, T), as RANK.pt in a folder.

    Args:
        folder: Is made.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.seen: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.seen.append(batch.inputs)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.folder.mkdir(exist_ok=True)
        torch.save(torch.stack(self.seen), self.folder / f"{trainer.global_rank}.pt")
