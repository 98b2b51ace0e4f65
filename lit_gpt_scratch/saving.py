"""What a run survives by: checkpoints that are whole, in time and on request, and logs that go on.

A checkpoint is written only between two optimizer steps, when all that was logged of the steps
before it is on disk. Where a run goes on from it, what was logged after it is cut off.
"""

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.files import lock, written_whole
from lit_gpt_scratch.tables import append_rows, read_rows, write_rows

TABLES = ("metrics.csv", "samples.csv", "symbols.csv")


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

    def state_dict(self) -> dict[str, Any]:
        return {"lines": count_lines(self.path.parents[1])}

    @rank_zero_only
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Say it where tables do not hold all that they held: those rows cannot come back."""
        there = count_lines(self.path.parents[1])
        lost = [name for name, count in state_dict["lines"].items() if there.get(name, 0) < count]
        if lost and self.path.parent.exists():  # else the run goes on in a new folder
            print(
                f"Notice: {', '.join(lost)} lacks rows that were there when the checkpoint was "
                "saved. The run goes on without them.",
                file=sys.stderr,
            )


def best_checkpoint(trainer: Any) -> ModelCheckpoint:
    """The callback that keeps the best checkpoint; `best_model_score` is its validation loss."""
    return next(c for c in trainer.checkpoint_callbacks if c.monitor == "val/loss")


class MetricsCSV(Logger):
    """metrics.csv: a row for each log, appended as it comes; new columns are added to all rows.

    Lightning's own would delete the file of a run that goes on.

    Args:
        folder: The run's.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self._columns = [*read_rows(self.path)[0]] if self.path.exists() else []

    @property
    def name(self) -> str:
        return self.path.parents[1].name

    @property
    def version(self) -> str:
        return self.path.parent.name

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The run's config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {"step": step, **metrics}
        if new := [key for key in row if key not in self._columns]:
            rows = read_rows(self.path)[1] if self._columns else []
            self._columns += new
            write_rows(self.path, self._columns, rows)
        append_rows(self.path, self._columns, [[row.get(key, "") for key in self._columns]])


def count_lines(folder: Path) -> dict[str, int]:
    """Of each of a run's tables, as a measure of whether it is whole."""
    counts = {}
    for name in TABLES:
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                os.fsync(file.fileno())  # a power cut must not take rows that a checkpoint counts
                counts[name] = file.read().count(b"\n")
    return counts


def cut_after(folder: Path, step: int) -> None:
    """Take away what a run logged after a step, since it is about to do so again.

    And what a killed process did not finish: whoever calls this holds the folder.
    """
    for left in [*folder.glob(".*.partial"), *folder.glob("checkpoints/.*.partial")]:
        shutil.rmtree(left)
    for path in (folder / name for name in TABLES):
        if path.is_file():
            columns, rows = read_rows(path)
            with_step = [row for row in rows if row.get("step", "").isdecimal()]
            kept = [row for row in with_step if int(row["step"]) <= step]
            write_rows(path, columns, kept)
    for path in folder.glob("attention/step_*.png"):
        if int(path.stem.removeprefix("step_")) > step:
            path.unlink()


def hold(folder: Path) -> int:
    """Keep others from training in a folder, for as long as this process lives.

    Returns:
        A descriptor, to be kept.

    Raises:
        InputError: Another process holds it.
    """
    held = lock(folder)
    if held is None:
        raise InputError(
            f"run {folder} is being trained by another process: wait for its end, or leave "
            "--ckpt_path out for a run of its own."
        )
    return held
