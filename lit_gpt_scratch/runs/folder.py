"""The folder of a run: its name, lock, checkpoint and tables. `report` needs it without Lightning.

The last row of a table is ignored if a crash has cut it off.
"""

import contextlib
import csv
import io
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from filelock import BaseFileLock

from lit_gpt_scratch.errors import InputError, write_errors_as_input_errors
from lit_gpt_scratch.files import atomic_write, lock

# The loader in C, where there is one, is ten times as fast.
FAST_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
TABLES = ("metrics.csv", "samples.csv", "symbols.csv")
Row = dict[str, str]


def runs_folder(root: str | Path | None) -> Path:
    """Return the folder of all runs below the Trainer's `default_root_dir`."""
    if "://" in str(root):
        raise InputError(f"--trainer.default_root_dir {root}: it must be a folder, not an address.")
    return Path(root or ".").expanduser() / "runs"


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run: it has config.yaml or, if that is lost, metrics.csv."""
    return any((folder / name).is_file() for name in ("config.yaml", "metrics.csv"))


def version_order(path: Path) -> list[Any]:
    """Return a sort key that compares numbers in folder names by value: 9 before 10."""
    return [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", path.name)]


def new_run_folder(runs: Path, name: str) -> Path:
    """Return the next `NAME/version_N`; rank 0 creates it, so concurrent runs never share it."""
    from lit_gpt_scratch.training.distributed import is_rank_zero  # imports Lightning

    if not name or name != Path(name).name or name.startswith("."):
        raise InputError(f"name is {name!r}: it must be a plain folder name, without slashes.")
    try:
        (runs / name).mkdir(parents=True, exist_ok=True)
        taken = [path.name.removeprefix("version_") for path in (runs / name).glob("version_*")]
        version = max((int(number) for number in taken if number.isdecimal()), default=-1) + 1
        while True:
            folder = runs / name / f"version_{version}"
            try:
                if is_rank_zero():
                    folder.mkdir()
                return folder
            except FileExistsError:  # another run has just created it
                version += 1
    except OSError as error:
        raise InputError(
            f"run folder {runs / name} cannot be written ({error.strerror}): choose another with "
            "--trainer.default_root_dir."
        ) from error


def default_name(config: Path | None, checkpoint: Path | None) -> str:
    """Return a run's name: its config's file name, or the name of the run that it comes from."""
    if config and config.name != "config.yaml":
        return config.stem
    folder = Path()
    if config:
        folder = config.resolve().parent
    elif checkpoint:
        folder = checkpoint.resolve().parents[1]
    return folder.parent.name if folder.name.startswith("version_") else "gpt_cpu"


def write_yaml_files(folder: Path, **contents: dict[str, Any]) -> None:
    """Write each keyword argument to a file NAME.yaml in a folder, atomically."""
    for name, values in contents.items():
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        path = folder / f"{name}.yaml"
        with write_errors_as_input_errors(path), atomic_write(path) as file:
            file.write(text.encode())


def mark_finished(folder: Path) -> None:
    """Note in about.yaml that a run has come to its end; find_unfinished_run reads it."""
    write_yaml_files(folder, about=read_mapping(folder / "about.yaml") | {"finished": True})


def last_checkpoint(folder: Path) -> Path:
    """Return the path of the checkpoint that a run resumes from."""
    return folder / "checkpoints" / "last.ckpt"


def resume_folder(checkpoint: Path, name: str | None) -> Path | None:
    """Return the folder of a checkpoint's run; None outside a run, or if `name` is another run."""
    path = checkpoint.resolve()
    folder = path.parents[1]
    inside = path.parent.name == "checkpoints" and is_run(folder)
    return folder if inside and name in (None, folder.parent.name) else None


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; empty if the file is missing, truncated or no mapping."""
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        values = yaml.load(path.read_text(encoding="utf-8"), FAST_LOADER)
        return values if isinstance(values, dict) else {}
    return {}


def refuse_truncated_config(config: Path) -> None:
    """Raise InputError if a run's own config.yaml has lost its end: defaults would replace it."""
    if config.name != "config.yaml" or not (config.parent / "checkpoints").is_dir():
        return
    last_section = read_mapping(config).get("wandb") or ()
    if "tags" not in last_section or not config.read_bytes().endswith(b"\n"):
        raise InputError(
            f"--config {config} is truncated: its end is missing. Give the configs and flags that "
            "the run was started with instead; fit then writes a new config.yaml."
        )


def find_unfinished_run(folder: Path) -> Path | None:
    """Return the newest run in runs/NAME if it stopped early and no process trains it."""
    newest = max(filter(is_run, folder.glob("*")), key=version_order, default=None)
    if newest and (newest / "metrics.csv").is_file():  # else it has another logger
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            max_steps = int(read_mapping(newest / "config.yaml")["trainer"]["max_steps"])
            steps = [int(row["step"]) for row in read_rows(newest / "metrics.csv")[1]]
            lock_run_folder(newest).release()
            is_finished = read_mapping(newest / "about.yaml").get("finished", False)
            return None if is_finished or max(steps, default=0) >= max_steps > 0 else newest
    return None


def lock_run_folder(folder: Path) -> BaseFileLock:
    """Lock a run's folder against other processes, until `release()` or the end of this one."""
    if (held := lock(folder)) is None:
        raise InputError(
            f"run {folder} is being trained by another process: wait until it ends, or omit "
            "--ckpt_path to start a new run."
        )
    return held


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


def validations(folder: Path) -> list[Row]:
    """Return the rows of metrics.csv that a run's validations have logged so far."""
    _, rows = read_rows(folder / "metrics.csv")
    return [row for row in rows if row.get("val/loss") and row.get("step", "").isdecimal()]


def validation_losses(folder: Path) -> dict[int, float]:
    """Return a run's validation losses so far by step, in nats per character."""
    return {int(row["step"]): float(row["val/loss"]) for row in validations(folder)}


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Replace a CSV file atomically; a column that a row lacks becomes an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    with write_errors_as_input_errors(path), atomic_write(path) as file:
        file.write(text.getvalue().encode())


def count_lines(folder: Path) -> dict[str, int]:
    """Return the number of lines of each table in a run's folder, after a sync to disk."""
    counts = {}
    for path in [folder / name for name in TABLES if (folder / name).is_file()]:
        with path.open("r+b") as file:  # Windows syncs only files that are open for writing
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
        number = path.stem.removeprefix("step_")
        if number.isdecimal() and int(number) > step:
            path.unlink()
