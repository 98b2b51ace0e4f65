"""Shows progress on the terminal: a bar, or one line per validation in a log file."""

import math
import sys
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, TQDMProgressBar


class ProgressBar(TQDMProgressBar):
    """Lightning's bar for the whole run; refreshed rarely, because refreshing is slow."""

    # A narrow terminal cuts off the end: losses first. At 80 columns all of this fits.
    FORMAT = "{desc}|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"

    def __init__(self) -> None:
        super().__init__(refresh_rate=20)

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Start the bar at the step that the run resumes from."""
        super().on_train_start()
        bar, total = self.train_progress_bar, trainer.estimated_stepping_batches
        bar.total = total if math.isfinite(total) else None
        bar.n = bar.initial = trainer.global_step
        bar.bar_format = self.FORMAT
        self.show_losses(trainer)

    def on_train_epoch_start(self, *_: Any) -> None:
        """Do nothing: one bar is for all epochs."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        bar, step = self.train_progress_bar, trainer.global_step
        if step > bar.n and (step % self.refresh_rate == 0 or step == bar.total):
            bar.n = step
            bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)
            self.show_losses(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "fit":
            self.show_losses(trainer)

    def show_losses(self, trainer: pl.Trainer) -> None:
        """Draw the bar with the newest losses."""
        found = trainer.callback_metrics
        keys = [key for key in ("train/loss", "val/loss") if key in found]
        losses = [f"{key.removesuffix('/loss')} {found[key]:.3f}" for key in keys]
        text = f"loss: {', '.join(losses)} " if losses else "Training "
        self.train_progress_bar.set_description_str(text)

    def get_metrics(self, trainer: pl.Trainer, *_: Any) -> Any:
        speed = trainer.callback_metrics.get("chars_per_sec")
        return {} if speed is None else {"chars/s": f"{speed:,.0f}"}


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
