"""Checkpointing: saves complete checkpoints at intervals and on SIGINT or SIGTERM.

A checkpoint is written only between two optimizer steps, after all rows of the steps before it are
on disk. A resumed run removes rows that were logged after its checkpoint.
"""

import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lit_gpt_scratch.errors import InputError, causes
from lit_gpt_scratch.files import atomic_link, atomic_write
from lit_gpt_scratch.private_api import (
    FULL_DISK,
    not_counting_next_batch,
    set_logged_step,
    stop_asking_for_sigterm,
)
from lit_gpt_scratch.training.distributed import cpu_group, maxima

AGREE_STEPS = 10  # after so many steps, several processes agree again whether to save or stop


class GracefulStop(SystemExit):
    """Raised after a save, to end the process. Its exit code is 128 plus the signal's number."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file beside its path, and renames it when it is complete.

    Lightning's own goes through the system's temporary folder, which may be on another disk.
    """

    same: Path | None = None  # a file with the contents of the next checkpoint; None: there is none

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        if self.same and atomic_link(self.same, Path(path)):
            return
        try:
            with atomic_write(Path(path)) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and FULL_DISK not in str(error):
                raise
            reasons = [cause.strerror for cause in causes(error) if isinstance(cause, OSError)]
            reason = next(filter(None, reasons), "the disk is full or missing")
            raise InputError(
                f"checkpoint {path} cannot be saved ({reason}). An earlier one, if any, is still "
                "complete: free some space, and resume from it with --ckpt_path."
            ) from error


class SignalCheckpoint(Callback):
    """Saves at intervals of time, and when SIGINT or SIGTERM arrives.

    After a signal, the current step ends, a checkpoint is saved, and `GracefulStop` is raised. A
    second SIGINT stops at once. Several processes agree on this every `AGREE_STEPS` steps: one that
    has a signal stops all, and the clock of rank 0 counts.
    """

    def __init__(self, path: Path | None, minutes: float = 5.0) -> None:
        self.path = path  # None: stop without saving
        self.seconds = 60 * minutes  # between two saves
        self.received = 0  # number of the signal

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        # Not earlier: during set-up, Lightning wraps the handlers that it finds. It restores the
        # original handlers when the fit ends.
        self._saved = time.monotonic()  # when the last checkpoint was saved
        self._steps, self._group = 0, cpu_group(trainer)  # steps of this fit so far
        if trainer.received_sigterm:  # during set-up
            self.received = signal.SIGTERM
        stop_asking_for_sigterm(trainer)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._remember_signal)

    def _remember_signal(self, number: int, _: Any) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def on_train_batch_start(self, trainer: Any, _: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches:
            return  # in the middle of a step
        set_logged_step(trainer)  # a resumed run would log its first rows under a wrong step
        self._steps += 1
        if trainer.world_size > 1 and self._steps % AGREE_STEPS != 1:
            return  # processes that wait for each other at each step take longer
        is_late = time.monotonic() - self._saved > self.seconds and trainer.is_global_zero
        number, is_due = maxima([self.received, int(is_late)], self._group)
        if number or is_due:
            self.save(trainer)
        if number:
            raise GracefulStop(128 + number)

    def save(self, trainer: Any) -> None:
        """Save the state after the last step."""
        if self.path:
            with not_counting_next_batch(trainer):
                trainer.save_checkpoint(self.path)
        self._saved = time.monotonic()

    def on_validation_end(self, *_: Any) -> None:
        self._saved = time.monotonic()  # ModelCheckpoint saves one at each validation


class RunCheckpoint(ModelCheckpoint):
    """Writes FOLDER/NAME.ckpt at each validation, or only if the metric `monitor` is the best.

    After a validation that is the best, both have the same state. It is written once, because of
    its size: last.ckpt is then a second name of the file best.ckpt.
    """

    def __init__(self, folder: Path, name: str, monitor: str | None = None) -> None:
        super().__init__(
            dirpath=folder,
            filename=name,
            monitor=monitor,
            auto_insert_metric_name=False,
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )
        self.path = Path(str(self.dirpath)) / f"{name}.ckpt"
        self.has_saved = False  # at the newest validation; known only with `monitor`

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        best, score = best_checkpoint(trainer), self.current_score
        io = trainer.strategy.checkpoint_io
        io.same = best.path if best and best is not self and best.has_saved else None
        try:
            super().on_validation_end(trainer, pl_module)
        finally:
            io.same = None
        self.has_saved = self.current_score is not score  # a save keeps its score

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Save the last step if no validation has done so."""
        super().on_train_end(trainer, pl_module)
        is_saved = "val/loss" in trainer.callback_metrics or trainer.fast_dev_run
        if not self.monitor and not is_saved:
            trainer.save_checkpoint(self.path)

    @property
    def state_key(self) -> str:
        """Return a key of our own: a user's ModelCheckpoint may have the same settings."""
        return f"RunCheckpoint: {self.filename}"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best score of this folder, but no path: a stranger may have written it."""
        score = state_dict["best_model_score"]
        if score is None or state_dict.get("dirpath") != self.dirpath:
            return
        self.best_model_score = self.kth_value = score
        self.best_model_path = self.kth_best_model_path = str(self.path)
        self.best_k_models = {str(self.path): score}

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Use the state under its old key, if an older version wrote the checkpoint."""
        states = checkpoint["callbacks"]
        if super().state_key in states:
            states.setdefault(self.state_key, states[super().state_key])


def best_checkpoint(trainer: Any) -> RunCheckpoint | None:
    """Return the callback that keeps the best checkpoint, with its loss in `best_model_score`."""
    kept = [c for c in trainer.checkpoint_callbacks if isinstance(c, RunCheckpoint) and c.monitor]
    return kept[0] if kept else None
