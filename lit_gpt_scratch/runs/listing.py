"""`lit-gpt-scratch runs`: lists the runs on disk. Also finds the checkpoint that a name means."""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser

from lit_gpt_scratch.errors import InputError, exit_on_input_error
from lit_gpt_scratch.files import lock
from lit_gpt_scratch.runs.folder import (
    is_run,
    last_checkpoint,
    read_mapping,
    read_rows,
    version_order,
)
from lit_gpt_scratch.runs.reading import parse_number, require_folder, runs_below
from lit_gpt_scratch.shell import PROGRAM, checkpoint_flags, shell_name

UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


class RunInfo(NamedTuple):
    """What the list shows about a run. None: not known."""

    path: str  # relative to the working directory; --ckpt_path takes it
    network: str
    parameters: int | None
    best: float | None  # validation loss in nats per character
    step: int
    max_steps: int | None
    seconds_ago: float  # when the run last wrote
    state: str  # finished, training, stopped (fit can resume it) or failed (it has no checkpoint)


def read_info(folder: Path) -> RunInfo:
    """Return what is known about a run."""
    about, config = (read_mapping(folder / f"{name}.yaml") for name in ("about", "config"))
    _, rows = read_rows(folder / "metrics.csv")
    losses = [loss for row in rows if (loss := parse_number(row.get("val/loss"))) is not None]
    steps = [int(step) for row in rows if (step := row.get("step", "")).isdecimal()]
    written = [folder, *folder.glob("*.csv"), *folder.glob("checkpoints/*.ckpt")]
    trainer, parameters = config.get("trainer"), about.get("parameters")
    most = trainer.get("max_steps") if isinstance(trainer, dict) else None
    return RunInfo(
        path=display_path(folder),
        network=str(about.get("network") or "unknown"),
        parameters=parameters if isinstance(parameters, int) else None,
        best=min(losses, default=None),
        step=max(steps, default=0),
        max_steps=most if isinstance(most, int) and most > 0 else None,
        seconds_ago=max(0.0, time.time() - max(path.stat().st_mtime for path in written)),
        state=find_state(folder, about.get("finished") is True),
    )


def find_state(folder: Path, is_finished: bool) -> str:
    """Return whether a run is finished, training, stopped or failed."""
    if is_finished:
        return "finished"
    if (held := lock(folder)) is None:
        return "training"
    held.release()
    return "stopped" if last_checkpoint(folder).is_file() else "failed"


def display_path(path: Path) -> str:
    """Return a path relative to the working directory if it is inside, with /."""
    path, here = path.resolve(), Path.cwd().resolve()
    return (path.relative_to(here) if path.is_relative_to(here) else path).as_posix()


def age(seconds: float) -> str:
    """Return "12 min ago" and the like."""
    size, unit = next((u for u in UNITS if seconds >= u[0]), UNITS[-1])
    return f"{seconds / size:.0f} {unit} ago"


def find_checkpoint(
    wanted: str, runs: Path, default: str = "best", flag: str = "--ckpt_path"
) -> Path:
    """Return the checkpoint that a flag names, and print which one if there was a choice.

    Args:
        wanted: A file, an exported folder, or a run: its folder, or that of its name, whose newest
            version is taken. `best` and `last` are those of the newest run.
        runs: The folder of all runs, for `best` and `last`.
        default: The checkpoint of a run that has no other name: best or last.
        flag: The flag, for error messages.

    Raises:
        InputError: There is no such checkpoint in a folder of runs.
    """
    if wanted in ("best", "last"):
        found = sorted(runs.glob(f"*/version_*/checkpoints/{wanted}.ckpt"), key=os.path.getmtime)
        if not found:
            raise InputError(
                f"{flag} {wanted}: no run in {runs} has a {wanted}.ckpt. Run fit first."
            )
        return announce(wanted, found[-1])
    path = Path(wanted).expanduser()
    folder = path.parent if path.name == "checkpoints" else path
    versions = sorted(filter(is_run, folder.glob("version_*")), key=version_order)
    if not is_run(folder) and not versions:
        if any(is_run(run) for run in folder.glob("*/version_*")):
            raise InputError(
                f"{flag} {wanted} holds several runs: give one of them. "
                f"{PROGRAM} runs {wanted} lists them."
            )
        return path  # a file or an export; reading it says if it is neither
    found = [f / "checkpoints" / f"{default}.ckpt" for f in (versions or [folder])]
    found = [file for file in found if file.is_file()]
    if not found:
        raise InputError(f"{flag} {wanted}: this run has no {default}.ckpt yet.")
    return announce(wanted, found[-1])


def announce(wanted: str, path: Path) -> Path:
    """Print on standard error which checkpoint a name means. Return its path."""
    info = read_info(path.parents[1])
    loss = "" if info.best is None else f", best val/loss {info.best:.4f}"
    facts = f"{info.network}{loss}, {age(info.seconds_ago)}"
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        print(f"{wanted} is {display_path(path)} ({facts})", file=sys.stderr)
    return path


def size(parameters: int | None) -> str:
    """Return a number of parameters in few characters: 4.2 k, 803 k, 3.2 M."""
    if parameters is None:
        return ""
    value, unit = (parameters / 1e6, "M") if parameters >= 1e6 else (parameters / 1e3, "k")
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"


def format_list(runs: Sequence[RunInfo]) -> str:
    """Return the list as aligned text."""
    rows = [("run", "network", "size", "best", "written", "state, step")]
    for run in runs:
        steps = (
            f"{run.step:,}" if run.step == run.max_steps else f"{run.step:,}/{run.max_steps or '?'}"
        )
        loss = "" if run.best is None else f"{run.best:.4f}"
        state = f"{run.state} {steps}"
        rows.append(
            (run.path, run.network, size(run.parameters), loss, age(run.seconds_ago), state)
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def main(args: Sequence[str] | None = None) -> None:
    """List runs, the newest last: network, size, best validation loss, age and state."""
    parser = ArgumentParser(prog=f"{PROGRAM} runs", description=main.__doc__, exit_on_error=False)
    where = "Folders that contain runs (default: runs)."
    parser.add_argument("folders", nargs="*", type=Path, default=[], help=where)
    parser.add_argument("--json", action="store_true", help="Print all values as JSON.")
    with exit_on_input_error(parser.prog):
        options: Any = parser.parse_args(args)
        found = []
        folders = options.folders or [Path("runs")][: Path("runs").is_dir()]
        for folder in folders:
            require_folder(folder)
            found += [read_info(run) for run in runs_below(folder)]
    found.sort(key=lambda run: -run.seconds_ago)
    if options.json:
        print(json.dumps([run._asdict() for run in found], indent=1))
    elif not found:
        where = f" in {', '.join(map(str, folders))}" if folders else ""
        print(f"There are no runs yet{where}: {shell_name()} fit trains one.")
    else:
        print(format_list(found))
        paths = (Path(info.path) for info in found)
        for run in [path for path in paths if (path / "checkpoints" / "best.ckpt").is_file()][-1:]:
            flags = checkpoint_flags(run, read_mapping(run / "config.yaml").get("plugin"))
            print(f"\nUse a run by its path: {shell_name()} predict {flags}")
