"""The folder of a run: where it is, what is written into it, and what is said of it at the end."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import yaml

from lit_gpt_scratch.errors import InputError, write_errors_as_input_errors
from lit_gpt_scratch.files import atomic_write, lock
from lit_gpt_scratch.runs.tables import read_rows
from lit_gpt_scratch.training.distributed import is_rank_zero

DEFAULT_NAME = "gpt_cpu"


def runs_folder(root: str | Path | None) -> Path:
    """The folder of all runs under the Trainer's `default_root_dir` (default: this folder)."""
    return Path(root or ".").expanduser() / "runs"


def new_run_folder(runs: Path, name: str) -> Path:
    """The next `NAME/version_N`, made now, so that two runs that start together get two folders.

    Raises:
        InputError: The name is a path, or the folder cannot be written.
    """
    if not name or name != Path(name).name or name.startswith("."):
        raise InputError(f"name is {name!r}: it must be a plain folder name, without slashes.")
    try:
        (runs / name).mkdir(parents=True, exist_ok=True)
        taken = [int(p.name[8:]) for p in (runs / name).glob("version_*") if p.name[8:].isdigit()]
        version = max(taken, default=-1) + 1
        while True:
            try:
                folder = runs / name / f"version_{version}"
                if is_rank_zero():
                    folder.mkdir()
                return folder
            except FileExistsError:
                if not folder.is_dir():
                    raise
                version += 1
    except OSError as error:
        raise InputError(
            f"run folder {runs / name} cannot be written ({error.strerror}): choose another with "
            "--trainer.default_root_dir."
        ) from error


def default_name(config: Path | None, checkpoint: Path | None) -> str:
    """A run's, from its first config file, else from the run that its checkpoint lies in."""
    if config and config.name != "config.yaml":  # a run's own, whose name says nothing
        return config.stem
    folder = Path()
    if config:
        folder = config.resolve().parent
    elif checkpoint:
        folder = checkpoint.resolve().parents[1]
    return folder.parent.name if folder.name.startswith("version_") else DEFAULT_NAME


def write_facts(folder: Path, **parts: dict[str, Any]) -> None:
    """NAME.yaml of each, whole."""
    for name, values in parts.items():
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        path = folder / f"{name}.yaml"
        with write_errors_as_input_errors(path), atomic_write(path) as file:
            file.write(text.encode())


def last_checkpoint(folder: Path) -> Path:
    """Where the run in a folder keeps what it goes on from."""
    return folder / "checkpoints" / "last.ckpt"


def resume_command(folder: Path) -> str:
    """What goes on with a run from its last checkpoint."""
    config, last = (shlex.quote(str(p)) for p in (folder / "config.yaml", last_checkpoint(folder)))
    return f"lit-gpt-scratch fit --config {config} --ckpt_path {last}"


def folder_to_go_on_in(checkpoint: Path, name: str | None) -> Path | None:
    """That of the run which a checkpoint lies in, unless a run of another name is asked for."""
    path = checkpoint.resolve()
    folder = path.parents[1]
    # Either of them: the other may be what was lost.
    ours = any((folder / file).is_file() for file in ("config.yaml", "metrics.csv"))
    inside = path.parent.name == "checkpoints" and ours
    return folder if inside and name in (None, folder.parent.name) else None


def check_whole(config: Path) -> None:
    """Refuse a run's own config.yaml of which only the beginning is left: defaults would follow.

    Raises:
        InputError: Its end is missing. Any other config is as its user wrote it.
    """
    if config.name != "config.yaml" or not (config.parent / "checkpoints").is_dir():
        return
    text = config.read_text(encoding="utf-8")
    found = yaml.safe_load(text)
    last = found.get("wandb") if isinstance(found, dict) else None
    if "tags" not in (last or ()) or not text.endswith("\n"):
        raise InputError(
            f"{config} is torn: it lacks its end. Give the configs and flags that the run was "
            "begun with instead, and it is written anew."
        )


def say_how_to_go_on(folder: Path, what: str) -> None:
    """On standard error, where the run in a folder has a checkpoint."""
    if is_rank_zero() and last_checkpoint(folder).exists():
        print(f"{what} To go on:\n  {resume_command(folder)}", file=sys.stderr)


def unfinished(runs: Path) -> Path | None:
    """The newest run in a folder of versions, if it ended before its last step."""
    folders = [p for p in runs.glob("version_*") if p.name[8:].isdecimal()]
    folder = max(folders, key=lambda path: int(path.name[8:]), default=None)
    if folder is None:
        return None
    try:
        steps = int(yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["max_steps"])
        _, rows = read_rows(folder / "metrics.csv")
        reached = max((int(row["step"]) for row in rows), default=0)
        os.close(hold(folder))  # or somebody is at it
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return None
    return folder if reached < steps else None


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


def find_checkpoint(wanted: str, runs: Path) -> Path:
    """The file that `wanted` means: a path, or `best` or `last` of the newest run.

    Raises:
        InputError: There is no run yet.
    """
    if wanted not in ("best", "last"):
        return Path(wanted).expanduser()
    found = runs.glob(f"*/version_*/checkpoints/{wanted}.ckpt")
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise InputError(f"ckpt_path {wanted}: no run under {runs} has one. Run fit first.")
    return newest
