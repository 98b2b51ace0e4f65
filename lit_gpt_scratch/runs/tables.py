"""Reads, writes and trims a run's CSV files; a last row that a crash cut off is ignored."""

import contextlib
import csv
import io
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from lit_gpt_scratch.errors import write_errors_as_input_errors
from lit_gpt_scratch.files import atomic_write

TABLES = ("metrics.csv", "samples.csv", "symbols.csv")
Row = dict[str, str]


def append_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Append rows to a CSV file; a new file starts with the column names."""
    header = [] if path.exists() else [columns]
    with write_errors_as_input_errors(path), path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([*header, *rows])


def read_rows(path: Path) -> tuple[list[str], list[Row]]:
    """Return a CSV file's columns and its complete rows; both are empty if there is no file."""
    data = path.read_bytes() if path.is_file() else b""
    complete = data[: data.rfind(b"\n") + 1].decode("utf-8", "replace")
    reader = csv.DictReader(io.StringIO(complete, newline=""), restval="", strict=True)
    rows: list[Row] = []
    columns: list[str] = []
    with contextlib.suppress(csv.Error):  # cut off inside quotes: keep the rows before
        columns += reader.fieldnames or ()
        rows.extend(reader)
    return columns, rows


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Replace a CSV file atomically; a column that a row lacks becomes an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([row.get(column, "") for column in columns] for row in rows)
    with write_errors_as_input_errors(path), atomic_write(path) as file:
        file.write(text.getvalue().encode())


def count_lines(folder: Path) -> dict[str, int]:
    """Return the number of lines of each table in a run's folder, after a sync to disk."""
    counts = {}
    for path in [folder / name for name in TABLES if (folder / name).is_file()]:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # a power cut must not lose rows that a checkpoint counts
            counts[path.name] = file.read().count(b"\n")
    return counts


def trim_after_step(folder: Path, step: int) -> None:
    """Remove what a run logged after a step, and partial files. The caller holds its lock."""
    for partial in [*folder.glob(".*.partial"), *folder.glob("checkpoints/.*.partial")]:
        shutil.rmtree(partial)
    for path in [folder / name for name in TABLES if (folder / name).is_file()]:
        columns, rows = read_rows(path)
        with_step = [row for row in rows if row.get("step", "").isdecimal()]
        write_rows(path, columns, [row for row in with_step if int(row["step"]) <= step])
    for path in folder.glob("attention/step_*.png"):
        if int(path.stem.removeprefix("step_")) > step:
            path.unlink()
