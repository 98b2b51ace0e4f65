"""The folder of a run: its name, lock and checkpoint. `report` needs it without Lightning."""

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import yaml

from lit_gpt_scratch.errors import InputError, write_errors_as_input_errors
from lit_gpt_scratch.files import atomic_write, lock
from lit_gpt_scratch.runs.tables import read_rows


def runs_folder(root: str | Path | None) -> Path:
    """Return the folder of all runs below the Trainer's `default_root_dir`."""
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
        taken = [int(p.name[8:]) for p in (runs / name).glob("version_*") if p.name[8:].isdigit()]
        version = max(taken, default=-1) + 1
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


def last_checkpoint(folder: Path) -> Path:
    """Return the path of the checkpoint that a run resumes from."""
    return folder / "checkpoints" / "last.ckpt"


def resume_folder(checkpoint: Path, name: str | None) -> Path | None:
    """Return the folder of a checkpoint's run; None outside a run, or if `name` is another run."""
    path = checkpoint.resolve()
    folder = path.parents[1]
    inside = path.parent.name == "checkpoints" and is_run(folder)
    return folder if inside and name in (None, folder.parent.name) else None


def refuse_truncated_config(config: Path) -> None:
    """Raise InputError if a run's own config.yaml has lost its end: defaults would replace it."""
    if config.name != "config.yaml" or not (config.parent / "checkpoints").is_dir():
        return
    text = config.read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    wandb = values.get("wandb") if isinstance(values, dict) else None
    if "tags" not in (wandb or ()) or not text.endswith("\n"):  # the last key that `fit` writes
        raise InputError(
            f"--config {config} is truncated: its end is missing. Give the configs and flags that "
            "the run was started with instead; fit then writes a new config.yaml."
        )


def find_unfinished_run(folder: Path) -> Path | None:
    """Return the newest run in runs/NAME if it stopped early and no process trains it."""
    newest = max(filter(is_run, folder.glob("*")), key=version_order, default=None)
    if newest is None or not (newest / "metrics.csv").is_file():  # it has another logger
        return None
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        config = yaml.safe_load((newest / "config.yaml").read_text())
        step = max((int(row["step"]) for row in read_rows(newest / "metrics.csv")[1]), default=0)
        os.close(lock_run_folder(newest))
        return newest if step < int(config["trainer"]["max_steps"]) else None
    return None


def lock_run_folder(folder: Path) -> int:
    """Return a file descriptor that locks a run's folder against other processes until closed."""
    descriptor = lock(folder)
    if descriptor is None:
        raise InputError(
            f"run {folder} is being trained by another process: wait until it ends, or omit "
            "--ckpt_path to start a new run."
        )
    return descriptor


def find_checkpoint(wanted: str, runs: Path) -> Path:
    """Return the checkpoint that `--ckpt_path` names: a path, or the newest `best` or `last`."""
    if wanted not in ("best", "last"):
        return Path(wanted).expanduser()
    files = runs.glob(f"*/version_*/checkpoints/{wanted}.ckpt")
    newest = max(files, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise InputError(
            f"--ckpt_path {wanted}: no run in {runs} has a {wanted}.ckpt. Run fit first."
        )
    return newest
