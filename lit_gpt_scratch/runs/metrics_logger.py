"""Writes metrics.csv, and keeps a run's tables in step with its checkpoints."""

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


class RowCounts(Callback):
    """Saves how many rows the tables have, and tells a resumed run which of them lost some.

    Args:
        folder: The run's.
    """

    state_key = "Saver"  # the name that this state has always had in checkpoints

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def state_dict(self) -> dict[str, Any]:
        return {"lines": count_lines(self.folder)}

    @rank_zero_only
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        there = count_lines(self.folder)
        lost = [name for name, count in state_dict["lines"].items() if there.get(name, 0) < count]
        if lost and (self.folder / "checkpoints").exists():  # else the run goes on in a new folder
            print(
                f"Notice: {', '.join(lost)} lacks rows that were there when the checkpoint was "
                "saved. The run goes on without them.",
                file=sys.stderr,
            )
