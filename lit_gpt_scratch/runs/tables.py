"""A run's CSV files: rows are added as they come, and read back also where a process was killed."""

import contextlib
import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from lit_gpt_scratch.errors import write_errors_as_input_errors
from lit_gpt_scratch.files import atomic_write

Row = dict[str, str]


def append_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Add rows to a file, which is begun where there is none."""
    begun = path.exists()
    with write_errors_as_input_errors(path), path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if not begun:
            writer.writerow(columns)
        writer.writerows(rows)


def read_rows(path: Path) -> tuple[list[str], list[Row]]:
    """The columns of a file and its rows, less a last one that was not written to its end."""
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1].decode("utf-8", "replace")
    reader = csv.DictReader(io.StringIO(whole, newline=""), restval="", strict=True)
    rows: list[Row] = []
    columns: list[str] = []
    with contextlib.suppress(csv.Error):  # torn within quotes: those before stay
        columns += reader.fieldnames or ()
        rows.extend(reader)
    return columns, rows


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """A file, whole, with an empty cell where a row has no value of a column."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([row.get(column, "") for column in columns] for row in rows)
    with write_errors_as_input_errors(path), atomic_write(path) as file:
        file.write(text.getvalue().encode())
