"""Shows progress on the terminal: a bar, or one line per validation in a log file."""

import math
import sys
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, TQDMProgressBar


class ProgressBar(TQDMProgressBar):
    """Lightning's bar for the whole run; refreshed rarely, because refreshing is slow."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=20)

    @property
    def total_train_batches(self) -> int | float:
        trainer = self.trainer
        return trainer.max_steps * trainer.accumulate_grad_batches if trainer.max_steps > 0 else 0

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description("Training")

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
        found = trainer.callback_metrics
        names = ("train/loss", "val/loss", "val/bpc")
        shown: dict[str, str] = {name: f"{found[name]:.3f}" for name in names if name in found}
        if "chars_per_sec" in found:
            shown["chars/s"] = f"{found['chars_per_sec']:,.0f}"
        return shown


class LogLines(Callback):
    """Prints one line at each validation instead of a bar, for log files and CI."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            print(progress_line(trainer), file=sys.stderr)


def progress_line(trainer: pl.Trainer) -> str:
    """Return step and validation loss in one line."""
    loss = float(trainer.callback_metrics["val/loss"])
    step = f"step {trainer.global_step:>6,} of {trainer.max_steps:,}"
    return f"{step}: val/loss {loss:.4f}, {loss / math.log(2):.3f} bits per character"
