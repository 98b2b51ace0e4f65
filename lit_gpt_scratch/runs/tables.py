"""Reads and writes a run's CSV files; a last row that was cut off by a crash is ignored."""

import contextlib
import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from lit_gpt_scratch.errors import write_errors_as_input_errors
from lit_gpt_scratch.files import atomic_write

Row = dict[str, str]


def append_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Append rows to a CSV file; a new file starts with the column names."""
    is_new = not path.exists()
    with write_errors_as_input_errors(path), path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(columns)
        writer.writerows(rows)


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
