"""Callbacks for `fit` processes in tests: `--trainer.callbacks+=extra_callbacks.SendSignal`."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lit_gpt_scratch.training.checkpointing import SignalCheckpoint


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


class RecordCollectives(pl.Callback):
    """Records which functions of torch.distributed each process calls while it trains, and when.

    When the fit is stopped, it saves [[step, name], ...] as RANK.json in a folder; the last item is
    the step of the end. The clock of rank 1 always says that a checkpoint is due.

    Args:
        folder: Exists.
    """

    NAMES = ("all_reduce", "reduce", "broadcast", "barrier", "all_gather", "all_gather_object")

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.calls: list[tuple[int, str]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        (saver,) = [c for c in trainer.callbacks if isinstance(c, SignalCheckpoint)]
        saver.seconds = -1 if trainer.global_rank else saver.seconds
        self.is_first = True

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.is_first:
            self.is_first = False
            for name in self.NAMES:
                function = getattr(torch.distributed, name)
                setattr(torch.distributed, name, self.recorded(trainer, name, function))

    def recorded(
        self, trainer: pl.Trainer, name: str, function: Callable[..., Any]
    ) -> Callable[..., Any]:
        def record(*args: Any, **options: Any) -> Any:
            self.calls.append((trainer.global_step, name))
            return function(*args, **options)

        return record

    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        calls = [*self.calls, (trainer.global_step, "end")]
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(calls), "utf-8")
