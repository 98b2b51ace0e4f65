"""Runs of `fit` side by side, each in a process of its own, with a table of their progress."""

import contextlib
import html
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_gpt_scratch.cli.display import cell_display
from lit_gpt_scratch.cli.recipes import Recipe
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.runs.comparison import Outcome, read_outcome
from lit_gpt_scratch.runs.folder import (
    is_run,
    last_checkpoint,
    read_mapping,
    read_rows,
    validation_losses,
    version_order,
)
from lit_gpt_scratch.runs.groups import with_effect
from lit_gpt_scratch.runs.reading import flatten
from lit_gpt_scratch.shell import PROGRAM
from lit_gpt_scratch.training.distributed import PARENT

POLL_SECONDS = 0.5
CELL = 9  # width of a seed's column in the table of progress


class Job:
    """One run of `fit`: a variant's flags, and a seed.

    Its folder is in ROOT/runs/LABEL: a finished run with the same settings, seed and code, else the
    newest unfinished one.
    """

    def __init__(
        self, label: str, seed: int, flags: Sequence[str], recipe: Recipe, root: Path
    ) -> None:
        self.label, self.seed, self.flags = label, seed, flags
        self.root, self.runs = root, root / "runs" / label
        self.recipe, self.settings = recipe, with_effect(recipe.with_seed(seed))
        self.steps = int(recipe.settings["trainer.max_steps"])  # -1: not known before the end
        self.folder: Path | None = None  # None: there is none yet
        self.is_finished = False
        self.failure = ""  # why the run has failed
        self.abandoned: set[Path] = set()  # folders of runs that cannot be resumed
        self.process: subprocess.Popen[bytes] | None = None
        self.output = tempfile.TemporaryFile()  # noqa: SIM115
        self.find_folder()

    @property
    def is_over(self) -> bool:
        return self.is_finished or bool(self.failure)

    def find_folder(self) -> None:
        """Look for the run on disk."""
        versions = [f for f in self.runs.glob("version_*") if is_run(f) and f not in self.abandoned]
        for folder in sorted(versions, key=version_order):
            about = read_mapping(folder / "about.yaml")
            settings = dict(flatten(read_mapping(folder / "config.yaml")))
            settings["code_sha256"] = str(about.get("code_sha256"))
            if with_effect(settings) == self.settings:
                # A run can be killed after its last step, before it notes that it is finished.
                self.folder, steps = folder, max(validation_losses(folder), default=0)
                if about.get("finished") or steps >= self.steps > 0:
                    self.is_finished = True
                    return

    def start(self, environment: Mapping[str, str]) -> None:
        """Start the run, or resume it from its last checkpoint.

        A small network has one thread, unless the user has set OMP_NUM_THREADS.
        """
        flags = [*self.flags, f"--name={self.label}", f"--seed_everything={self.seed}"]
        if self.folder and last_checkpoint(self.folder).is_file() and self.progress() < 1:
            flags = ["--config", str(self.folder / "config.yaml")]
            flags += ["--ckpt_path", str(last_checkpoint(self.folder))]
        else:  # it was killed before its first checkpoint or its last validation: it starts again
            self.folder, self.abandoned = None, {*self.runs.glob("version_*")}
        flags += [f"--trainer.default_root_dir={self.root}"]
        command = [sys.executable, "-m", "lit_gpt_scratch", "fit", *flags]
        values = {**environment, PARENT: str(os.getpid())}
        if self.recipe.is_small:
            values["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
        self.process = subprocess.Popen(
            command, stdout=self.output, stderr=subprocess.STDOUT, env=values
        )

    def has_ended(self) -> bool:
        """Return whether the process has ended. Raise InputError if a bug has ended it."""
        code = self.process.poll() if self.process else None
        if code is None:
            return False
        self.find_folder()
        if code == 0 and self.is_finished:
            return True
        self.output.seek(0)
        text = self.output.read().decode("utf-8", "replace").strip()
        last_line = text.rpartition("\n")[2].removeprefix(f"{PROGRAM}: error: ").rstrip(".")
        self.failure = f"seed {self.seed} has failed with exit code {code}: {last_line}."
        if "Traceback (most recent call last)" in text:  # other runs have the same bug
            print(text, file=sys.stderr)
            raise InputError(
                f"{self.label}, {self.failure} Correct the cause, and start the same command "
                "again: finished runs are kept."
            )
        return True

    def progress(self) -> float:
        """Return the part of the steps that is done, from 0 to 1."""
        if self.is_over:
            return 1.0
        if self.process and self.folder is None:
            self.find_folder()
        rows = read_rows(self.folder / "metrics.csv")[1] if self.folder else []
        steps = max((int(row["step"]) for row in rows if row["step"].isdecimal()), default=0)
        return min(1.0, steps / self.steps) if self.steps > 0 else 0.0

    @cached_property
    def outcome(self) -> Outcome:
        """The losses of the finished run, in nats per character."""
        if not self.is_finished or self.folder is None:
            raise RuntimeError("the run is not finished")
        return read_outcome(self.folder, self.seed)

    def cell(self) -> str:
        """Return the validation loss of a finished run, or how much is done, for the table."""
        if self.failure:
            return "failed"
        if self.is_finished:
            return f"{self.outcome.last:.4f}"
        if self.process is None:
            return "waiting"
        return f"{progress:.0%}" if (progress := self.progress()) or self.folder else "starting"


def run_jobs(
    jobs: list[Job],
    environments: Sequence[Mapping[str, str]],
    find_more: Callable[[], Job | None] = lambda: None,
    count: int | None = None,
) -> None:
    """Train all runs that are not finished, as many at once as there are environments.

    If a run fails, the other seeds of its variant are not trained. After a bug, Ctrl-C or SIGTERM,
    the processes save their runs and end.

    Args:
        environments: Environment variables of the processes that run at the same time.
        find_more: Returns another run when none waits; it is added to `jobs`. None: there is none.
        count: Number of all runs; by default, that of `jobs`.
    """
    waiting = [job for job in jobs if not job.is_finished]
    running: dict[int, Job] = {}  # by the number of the environment
    table = ProgressTable(jobs, count or len(jobs))
    with stop_processes(jobs):
        while True:
            for place, environment in enumerate(environments):
                if place not in running and (job := waiting.pop(0) if waiting else find_more()):
                    running[place] = job
                    job.start(environment)
                    if job not in jobs:
                        jobs.append(job)
            if not running:
                return
            time.sleep(POLL_SECONDS)
            ended = {place: job for place, job in running.items() if job.has_ended()}
            running = {place: job for place, job in running.items() if place not in ended}
            failed = {job.label for job in ended.values() if job.failure}
            for job in [job for job in waiting if job.label in failed]:
                waiting.remove(job)
                job.failure = f"seed {job.seed} was not trained"
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

    def __init__(self, jobs: Sequence[Job], count: int) -> None:
        self.jobs, self.count, self.started = jobs, count, time.monotonic()
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
                text = job.failure or f"seed {job.seed}: {job.cell()}"
                print(f"{job.label}, {text}", file=sys.stderr)
            return
        size = shutil.get_terminal_size()
        lines = [line[: size.columns - 1] for line in self.lines(size.lines - 2)]
        back = f"\033[{self.height}F\033[J" if self.height else ""
        print(back + "\n".join(lines), file=sys.stderr, flush=True)
        self.height = len(lines)

    def lines(self, limit: int) -> list[str]:
        """Return the table. If it is too high, show the variants that are being trained."""
        labels = list(dict.fromkeys(job.label for job in self.jobs))
        seeds = list(dict.fromkeys(job.seed for job in self.jobs))
        width = min(30, max(map(len, labels)))
        rows = {}
        for label in labels:
            cells = [job.cell() for job in self.jobs if job.label == label]
            rows[label] = f"{label[:width]:<{width}}" + "".join(f"{c:>{CELL}}" for c in cells)
        if len(rows) + 2 > limit:
            running = {job.label for job in self.jobs if job.process and not job.is_over}
            active = [label for label in labels if label in running][: limit - 2]
            rows = {label: rows[label] for label in active}
        header = f"{'seed':<{width}}" + "".join(f"{seed:>{CELL}}" for seed in seeds)
        return [header, *rows.values(), self.remaining()]

    def remaining(self) -> str:
        """Return how many runs are finished, and about how long the others take."""
        done = sum(job.progress() for job in self.jobs)
        text = f"{sum(job.is_over for job in self.jobs)} of {self.count} runs are finished"
        seconds = time.monotonic() - self.started
        gained = done - self.done_before
        if gained > 0.1:
            left = (self.count - done) * seconds / gained
            rest = f"{math.ceil(left / 60)} min" if left > 90 else f"{math.ceil(left)} s"
            text += f", about {rest} left" if left > 0 else ""
        return text
