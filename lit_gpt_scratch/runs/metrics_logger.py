"""Writes metrics.csv during training, and trims a run's tables when it resumes."""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from lit_gpt_scratch.runs.tables import append_rows, read_rows, write_rows

TABLES = ("metrics.csv", "samples.csv", "symbols.csv")


class MetricsCSV(Logger):
    """Appends one row to metrics.csv for each log call; a new column is added to all rows.

    Lightning's CSVLogger would delete the file of a run that resumes.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self._columns, _ = read_rows(self.path)

    @property
    def name(self) -> str:
        return self.path.parents[1].name

    @property
    def version(self) -> str:
        return self.path.parent.name

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Do nothing: the run's config.yaml has the hyperparameters."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {"step": step, **metrics}
        if new := [key for key in row if key not in self._columns]:
            _, rows = read_rows(self.path)
            self._columns += new
            write_rows(self.path, self._columns, rows)
        append_rows(self.path, self._columns, [[row.get(key, "") for key in self._columns]])


def count_lines(folder: Path) -> dict[str, int]:
    """Return the number of lines of each table in a run's folder, after a sync to disk."""
    counts = {}
    for name in TABLES:
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                os.fsync(file.fileno())  # a power cut must not lose rows that a checkpoint counts
                counts[name] = file.read().count(b"\n")
    return counts


def trim_after_step(folder: Path, step: int) -> None:
    """Remove what a run logged after a step, and the partial files of a killed process.

    The resumed run logs these steps again. The caller must hold the lock of the folder.
    """
    for partial in [*folder.glob(".*.partial"), *folder.glob("checkpoints/.*.partial")]:
        shutil.rmtree(partial)
    for path in (folder / name for name in TABLES):
        if path.is_file():
            columns, rows = read_rows(path)
            with_step = [row for row in rows if row.get("step", "").isdecimal()]
            write_rows(path, columns, [row for row in with_step if int(row["step"]) <= step])
    for path in folder.glob("attention/step_*.png"):
        if int(path.stem.removeprefix("step_")) > step:
            path.unlink()


class RowCounts(Callback):
    """Saves the length of each table in the checkpoint; reports lost rows when a run resumes."""

    state_key = "Saver"  # part of the checkpoint format

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def state_dict(self) -> dict[str, Any]:
        return {"lines": count_lines(self.folder)}

    @rank_zero_only
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        counts, saved = count_lines(self.folder), state_dict["lines"]
        lost = [name for name, count in saved.items() if counts.get(name, 0) < count]
        if lost and (self.folder / "checkpoints").exists():  # a new folder starts without rows
            print(
                f"Notice: {', '.join(lost)} lacks rows that existed when the checkpoint was saved. "
                "Training continues; the lost rows stay missing.",
                file=sys.stderr,
            )
