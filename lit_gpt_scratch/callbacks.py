"""What happens beside the training step: throughput and progress."""

import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, TQDMProgressBar


class Throughput(Callback):
    """Logs `chars_per_sec`, `tokens_seen` and `train_seconds`; validation's time is left out.

    Attributes:
        train_seconds: From the first step of this process on, without validation.
    """

    def __init__(self) -> None:
        self.train_seconds = 0.0
        self._since = 0.0
        self._logged_step, self._logged_seconds = 0, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.perf_counter()
        self._logged_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._logged_step or not pl_module.logs_after(step):
            return
        self._pause()
        seconds = self.train_seconds - self._logged_seconds
        steps = step - self._logged_step
        chars = self._chars_per_step(trainer)
        pl_module.log("chars_per_sec", steps * chars / seconds, prog_bar=True)
        pl_module.log("tokens_seen", float(step * chars))
        pl_module.log("train_seconds", self.train_seconds)
        self._logged_step, self._logged_seconds = step, self.train_seconds

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._since:
            self._pause()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._since:
            pl_module.log("tokens_seen", float(trainer.global_step * self._chars_per_step(trainer)))
            pl_module.log("train_seconds", self.train_seconds)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.perf_counter() if self._since else 0.0

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._pause()
        self._since = 0.0

    def _pause(self) -> None:
        """Add what has passed since the last pause."""
        now = time.perf_counter()
        self.train_seconds += now - self._since
        self._since = now

    @staticmethod
    def _chars_per_step(trainer: pl.Trainer) -> int:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        return int(data.batch_size * data.context * trainer.accumulate_grad_batches)


class ProgressBar(TQDMProgressBar):
    """Lightning's bar with the run's steps as its length; refreshed sparsely, since that costs."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=20)

    @property
    def total_train_batches(self) -> int | float:
        trainer = self.trainer
        return trainer.max_steps * trainer.accumulate_grad_batches if trainer.max_steps > 0 else 0

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class LogLines(Callback):
    """A line at each validation, in place of the bar where nobody watches: a log file, or CI."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            done = f"step {trainer.global_step:>6} of {trainer.max_steps}"
            print(f"{done}: val/loss {trainer.callback_metrics['val/loss']:.4f}", file=sys.stderr)
