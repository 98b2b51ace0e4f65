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

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        bar, total = self.train_progress_bar, trainer.estimated_stepping_batches
        bar.set_description("Training")
        bar.total = total if math.isfinite(total) else None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        bar, step = self.train_progress_bar, trainer.global_step
        if step > bar.n and (step % self.refresh_rate == 0 or step == bar.total):
            bar.n = step
            bar.set_postfix(self.get_metrics(trainer, pl_module))

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
    bits = f"{loss / math.log(2):.3f} bits per character"
    return f"step {step_of_total(trainer, width=6)}: val/loss {loss:.4f}, {bits}"


def step_of_total(trainer: pl.Trainer, width: int = 0) -> str:
    """Return "5 of 700": the step and the steps of the whole fit, if their number is known."""
    total = trainer.estimated_stepping_batches
    known = f" of {total:,}" if math.isfinite(total) else ""
    return f"{trainer.global_step:>{width},}{known}"
