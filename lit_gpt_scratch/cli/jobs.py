"""Runs of `fit` side by side, each in a process of its own, with a table of their progress."""

import contextlib
import html
import math
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_gpt_scratch.cli.display import cell_display
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.runs.comparison import Outcome, read_outcome
from lit_gpt_scratch.runs.folder import (
    is_run,
    last_checkpoint,
    read_mapping,
    read_rows,
    version_order,
)
from lit_gpt_scratch.runs.reading import flatten
from lit_gpt_scratch.shell import PROGRAM

# Beginnings of settings that do not change a run's result.
WITHOUT_EFFECT = ("wandb.", "name", "ckpt_path", "config", "trainer.default_root_dir")
POLL_SECONDS = 0.5
CELL = 9  # width of a seed's column in the table of progress


def with_effect(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that change a run's result."""
    return {name: value for name, value in settings.items() if not name.startswith(WITHOUT_EFFECT)}


class Job:
    """One run of `fit`: a variant's flags, and a seed.

    Its folder is the newest in ROOT/runs/LABEL with the same settings, seed and code.
    """

    def __init__(
        self, label: str, seed: int, flags: Sequence[str], settings: Mapping[str, str], root: Path
    ) -> None:
        self.label, self.seed, self.flags, self.root = label, seed, flags, root
        self.settings = with_effect(settings)
        self.steps = int(settings["trainer.max_steps"])  # -1: not known before the end
        self.folder: Path | None = None  # None: there is none yet
        self.is_finished = False
        self.process: subprocess.Popen[bytes] | None = None
        self.output = tempfile.TemporaryFile()  # noqa: SIM115
        self.find_folder()

    def find_folder(self) -> None:
        """Look for the run on disk."""
        versions = (self.root / "runs" / self.label).glob("version_*")
        for folder in sorted(filter(is_run, versions), key=version_order, reverse=True):
            about = read_mapping(folder / "about.yaml")
            settings = dict(flatten(read_mapping(folder / "config.yaml")))
            settings["code_sha256"] = str(about.get("code_sha256"))
            if with_effect(settings) == self.settings:
                self.folder, self.is_finished = folder, bool(about.get("finished"))
                return

    def start(self, environment: Mapping[str, str]) -> None:
        """Start the run, or resume it from its last checkpoint."""
        flags = [*self.flags, f"--name={self.label}", f"--seed_everything={self.seed}"]
        if self.folder and last_checkpoint(self.folder).is_file():
            flags = ["--config", str(self.folder / "config.yaml")]
            flags += ["--ckpt_path", str(last_checkpoint(self.folder))]
        else:  # it was killed before its first checkpoint, and starts again
            self.folder = None
        flags += [f"--trainer.default_root_dir={self.root}"]
        command = [sys.executable, "-m", "lit_gpt_scratch", "fit", *flags]
        self.process = subprocess.Popen(
            command, stdout=self.output, stderr=subprocess.STDOUT, env=environment
        )

    def has_ended(self) -> bool:
        """Return whether the process has ended. Raise InputError if it has failed."""
        code = self.process.poll() if self.process else None
        if code is None:
            return False
        self.find_folder()
        if code == 0 and self.is_finished:
            return True
        self.output.seek(0)
        text = self.output.read().decode("utf-8", "replace").strip()
        if "Traceback (most recent call last)" in text:  # a bug keeps its traceback
            print(text, file=sys.stderr)
        last_line = text.rpartition("\n")[2].removeprefix(f"{PROGRAM}: error: ")
        raise InputError(
            f"{self.label}, seed {self.seed}, has failed with exit code {code}: {last_line} "
            "Correct the cause, and start the same command again: finished runs are kept."
        )

    def progress(self) -> float:
        """Return the part of the steps that is done, from 0 to 1."""
        if self.is_finished:
            return 1.0
        if self.process and self.folder is None:
            self.find_folder()
        rows = read_rows(self.folder / "metrics.csv")[1] if self.folder else []
        steps = max((int(row["step"]) for row in rows if row["step"].isdecimal()), default=0)
        return min(1.0, steps / self.steps) if self.steps > 0 else 0.0

    def losses(self) -> dict[int, float]:
        """Return the validation losses so far, by step."""
        rows = read_rows(self.folder / "metrics.csv")[1] if self.folder else []
        return {int(row["step"]): float(row["val/loss"]) for row in rows if row.get("val/loss")}

    def outcome(self) -> Outcome:
        """Return the losses of the finished run."""
        if self.folder is None:
            raise RuntimeError("the run has not been trained")
        return read_outcome(self.folder, self.seed)

    def cell(self) -> str:
        """Return the validation loss of a finished run, or how much is done, for the table."""
        if self.is_finished:
            return f"{self.outcome().last:.4f}"
        return f"{self.progress():.0%}" if self.process else "waiting"


def run_jobs(
    jobs: list[Job],
    environments: Sequence[Mapping[str, str]],
    find_more: Callable[[], Job | None] = lambda: None,
) -> None:
    """Train all runs that are not finished, as many at once as there are environments.

    On an error, Ctrl-C or SIGTERM, the processes save their runs and end.

    Args:
        environments: Environment variables of the processes that run at the same time.
        find_more: Returns another run when none waits; it is added to `jobs`. None: there is none.
    """
    waiting = [job for job in jobs if not job.is_finished]
    running: dict[int, Job] = {}  # by the number of the environment
    table = ProgressTable(jobs)
    with stop_processes(jobs):
        while True:
            for place, environment in enumerate(environments):
                if place not in running and (job := waiting.pop(0) if waiting else find_more()):
                    running[place] = job
                    job.start(environment)
                    jobs += [job] * (job not in jobs)
            if not running:
                return
            time.sleep(POLL_SECONDS)
            ended = {place: job for place, job in running.items() if job.has_ended()}
            running = {place: job for place, job in running.items() if place not in ended}
            table.update([*ended.values()])


@contextlib.contextmanager
def stop_processes(jobs: Sequence[Job]) -> Iterator[None]:
    """At the end of this `with` block, stop all processes. SIGTERM ends the block."""

    def stop(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    is_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if is_main_thread else None
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        print("Stopping: the runs save. The same command continues them.", file=sys.stderr)
        raise
    finally:
        running = [job.process for job in jobs if job.process and job.process.poll() is None]
        for process in running:
            process.terminate()  # `fit` finishes its step, and saves
        for process in running:
            process.wait()
        if is_main_thread:
            signal.signal(signal.SIGTERM, before)
        for job in jobs:
            job.output.close()


class ProgressTable:
    """A line for each variant and a cell for each seed, redrawn in place.

    Where it cannot be redrawn, as in a file, a line for each run when it ends.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs, self.started = jobs, time.monotonic()
        self.done_before = sum(job.progress() for job in jobs)
        self.is_terminal = sys.stderr.isatty()
        self.show = cell_display()  # in a notebook
        self.height = 0  # lines on the terminal

    def update(self, ended: Sequence[Job]) -> None:
        """Draw the table, or print the runs that have just ended."""
        if self.show:
            self.show(f"<pre>{html.escape(chr(10).join(self.lines(len(self.jobs))))}</pre>")
            return
        if not self.is_terminal:
            for job in ended:
                print(f"{job.label}, seed {job.seed}: {job.cell()}", file=sys.stderr)
            return
        size = shutil.get_terminal_size()
        lines = [line[: size.columns - 1] for line in self.lines(size.lines - 2)]
        back = f"\033[{self.height}F\033[J" if self.height else ""
        print(back + "\n".join(lines), file=sys.stderr, flush=True)
        self.height = len(lines)

    def lines(self, limit: int) -> list[str]:
        """Return the table. If it is too high, leave out variants that wait or are finished."""
        labels = list(dict.fromkeys(job.label for job in self.jobs))
        seeds = list(dict.fromkeys(job.seed for job in self.jobs))
        width = min(30, max(map(len, labels)))
        rows = {}
        for label in labels:
            cells = [job.cell() for job in self.jobs if job.label == label]
            rows[label] = f"{label[:width]:<{width}}" + "".join(f"{c:>{CELL}}" for c in cells)
        if len(rows) + 2 > limit:
            rows = {label: row for label, row in rows.items() if "%" in row}
        header = f"{'seed':<{width}}" + "".join(f"{seed:>{CELL}}" for seed in seeds)
        return [header, *rows.values(), self.remaining()]

    def remaining(self) -> str:
        """Return how many runs are finished, and about how long the others take."""
        done = sum(job.progress() for job in self.jobs)
        finished = sum(job.is_finished for job in self.jobs)
        text = f"{finished} of {len(self.jobs)} runs are finished"
        seconds = time.monotonic() - self.started
        gained = done - self.done_before
        if gained > 0.1:
            left = (len(self.jobs) - done) * seconds / gained
            text += f", about {math.ceil(left / 60)} min left"
        return text
