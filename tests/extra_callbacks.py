"""Callbacks for `fit` processes in tests: `--trainer.callbacks+=extra_callbacks.SendSignal`."""

import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor


class SendSignal(pl.Callback):
    """Sends a signal to this process in the middle of a step.

    Args:
        step: Optimizer step, counted from 0.
        rank: The process that sends the signal and receives it.
        name: Name of the signal.
        group: Whether all processes of the job receive it, as with Ctrl-C.
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


class RecordInputs(pl.Callback):
    """Saves all inputs that each process trains on, (steps, B, T), as RANK.pt in a folder.

    Args:
        folder: Created if it does not exist.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.inputs: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.inputs.append(batch.inputs)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.folder.mkdir(exist_ok=True)
        torch.save(torch.stack(self.inputs), self.folder / f"{trainer.global_rank}.pt")
