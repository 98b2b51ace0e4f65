"""What a run survives by: checkpoints that are whole, in time and on request, and logs that go on.

A checkpoint is written only between two optimizer steps, when all that was logged of the steps
before it is on disk. Where a run goes on from it, what was logged after it is cut off.
"""

import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.files import written_whole


class Stopped(BaseException):
    """A signal asked for the end, and all is saved: not an error that anything is to handle.

    Attributes:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, and moves it there when it is whole and on disk.

    Lightning's own passes through the system's temporary folder, which may be another disk's.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        try:
            with written_whole(Path(path)) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # PyTorch's word for a full disk is the second
            reason = getattr(error, "strerror", None) or "the disk is full, or gone"
            raise InputError(
                f"checkpoint {path} cannot be saved ({reason}); the one before it is whole. Make "
                "room, and go on from it with --ckpt_path."
            ) from error


class Saver(Callback):
    """Saves when minutes have passed, and when SIGINT or SIGTERM asks for the end.

    A signal lets the step end, saves, and raises `Stopped`; a second SIGINT stops at once.

    Args:
        path: The checkpoint's.
        minutes: Between two of them.
    """

    def __init__(self, path: Path, minutes: float = 5.0) -> None:
        self.path, self.seconds = path, 60 * minutes
        self.asked = 0  # by which signal
        self._saved = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        # Here, since Lightning puts its own handlers in place of those that it finds in set-up; at
        # the end it gives back what it found.
        self._saved = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._note)

    def _note(self, number: int, _: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = number

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches:
            return
        # Lightning logs by a count of its own, which a resume at a validation's step puts out.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        stop, due = bool(self.asked), time.monotonic() - self._saved > self.seconds
        if trainer.world_size > 1:  # what one process is asked for, all do
            due = trainer.strategy.reduce_boolean_decision(stop or due, all=False)
            stop = due and trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop or due:
            self.save(trainer)
        if stop:
            raise Stopped(self.asked or signal.SIGTERM)

    def save(self, trainer: Any) -> None:
        """As of the end of the last step: the batch that is announced counts for nothing yet."""
        progress = trainer.fit_loop.epoch_loop.batch_progress
        for tracker in (progress.total, progress.current):
            tracker.ready -= 1
        trainer.save_checkpoint(self.path)
        for tracker in (progress.total, progress.current):
            tracker.ready += 1
        self._saved = time.monotonic()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._saved = time.monotonic()  # a checkpoint follows


def best_checkpoint(trainer: Any) -> ModelCheckpoint:
    """The callback that keeps the best checkpoint; `best_model_score` is its validation loss."""
    return next(c for c in trainer.checkpoint_callbacks if c.monitor == "val/loss")
