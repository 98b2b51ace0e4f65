"""Shared parts of all faults: processes of the command line, and the checks of how they end.

A fault gets a `Site`: a folder, a cache and a run of its own, and random numbers. It breaks
something there and checks one of three endings: the run equals an uninterrupted one, to the last
bit; the command prints one error line and exits with code 2; or the process ends by the signal.
Any other ending raises `AssertionError`.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from compare_runs import last, same, state, tables

STEPS = 120
TIMEOUT = 300  # seconds until a process counts as hanging
TEXT = 20_000  # characters of the corpus
NAME = "gpt_cpu"
# Everything that has a state: dropout, accumulation, averaged weights; rows between validations.
PLAIN = [
    "--data.corpus=sample", f"--data.sample_size={TEXT}", "--data.context=16",
    "--data.batch_size=8", "--model.net.dropout=0.2", "--model.net.layers=2",
    "--model.net.width=32", "--trainer.accumulate_grad_batches=2", "--trainer.log_every_n_steps=7",
    "--trainer.val_check_interval=40", f"--trainer.max_steps={STEPS}",
    "--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging",
    "--trainer.callbacks.decay=0.9", "--trainer.accelerator=cpu", "--wandb.mode=disabled",
]  # fmt: skip
# The settings of runs. If a flag appears twice, the last one counts.
FLAGS: dict[str, list[str]] = {
    "plain": PLAIN,
    # This run spends most of its time on validation.
    "validating": [
        *PLAIN, "--data.val_fraction=0.5", "--trainer.max_steps=40",
        "--trainer.val_check_interval=4",
    ],
    # The corpus of this run takes more than a second to encode.
    "large": [*PLAIN, "--data.val_fraction=0.0005", "--trainer.max_steps=20"],
}  # fmt: skip
LARGE = 2000  # copies of the corpus in the large one


class Process:
    """A running process of the command line.

    Args:
        args: Arguments of the command line.
        env: Variables to add to this process's environment.
        log: File for its standard error.
        file_limit: Limit in bytes on every file that it writes; None: no limit.
    """

    def __init__(
        self, args: Sequence[str], env: Mapping[str, str], log: Path, file_limit: int | None = None
    ) -> None:
        command = [sys.executable, "-m", "lit_gpt_scratch", *args]
        if file_limit is not None:
            command = ["prlimit", f"--fsize={file_limit}", *command]
        self.log = log
        with log.open("w", encoding="utf-8") as file:
            self.popen = subprocess.Popen(
                command,
                env=os.environ | env,
                stdout=subprocess.DEVNULL,
                # With a limit, a pipe: the limit would apply to the log file too.
                stderr=file if file_limit is None else subprocess.PIPE,
                text=True,
            )

    @property
    def output(self) -> str:
        """Its standard error so far."""
        return self.log.read_text(errors="replace", encoding="utf-8")

    def wait_for(self, condition: Callable[[], object]) -> bool:
        """Wait until a condition is true or the process ends; return whether it became true."""
        start = time.monotonic()
        while self.popen.poll() is None:
            if condition():
                return True
            assert time.monotonic() - start < TIMEOUT, f"hangs:\n{self.output}"
            time.sleep(0.0005)
        return bool(condition())

    def wait(self) -> int:
        """Wait for the end and return the exit code; a traceback fails."""
        try:
            code = self.popen.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            raise AssertionError(f"hangs:\n{self.output}") from None
        if self.popen.stderr:
            self.log.write_text(self.popen.stderr.read(), encoding="utf-8")
            self.popen.stderr.close()
            self.popen.stderr = None
        assert "Traceback" not in self.output, self.output
        return code

    def expect_success(self) -> None:
        """Check that it exits with code 0."""
        code = self.wait()
        assert code == 0, f"exit {code}:\n{self.output}"

    def expect_error(self, *words: str) -> str:
        """Check that it prints one error line, which has one of `words`, and exits with code 2."""
        code, output = self.wait(), self.output
        lines = [line for line in output.splitlines() if "error:" in line.lower()]
        assert code == 2, f"exit {code}:\n{output}"
        assert len(lines) == 1, output
        assert not words or any(word in lines[0] for word in words), output
        return "one line"

    def expect_stopped(self, number: int) -> None:
        """Check that the signal ended it, or that it had already finished."""
        code = self.wait()
        assert code in (-number, 128 + number, 0), f"exit {code}:\n{self.output}"

    def kill(self, number: int) -> None:
        """Send a signal and check the end."""
        self.popen.send_signal(number)
        self.expect_stopped(number)


class Prepared:
    """Runs that the sites of a campaign copy or compare with; each is made when first needed.

    Args:
        folder: The folder of the campaign.
        seed: Seed of the campaign.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self._lock = threading.RLock()

    def uninterrupted(self, name: str) -> "Site":
        """Return a finished run with the setting `name` of `FLAGS`."""
        with self._lock:
            site = Site(self, f"uninterrupted {name}", 0, setting=name)
            if not site.folder.exists():
                site.create()
                site.start().expect_success()
            return site

    def interrupted(self) -> "Site":
        """Return a run that SIGTERM has stopped after about half its steps."""
        with self._lock:
            site = Site(self, "interrupted", 0)
            if not site.folder.exists():
                shutil.copytree(self.uninterrupted("plain").cache, site.cache)
                process = site.start()
                process.wait_for(lambda: len(site.rows()) > 12)
                process.kill(signal.SIGTERM)
                assert last(site.run).exists(), process.output
            return site

    def large_text(self) -> Path:
        """Return a corpus of tens of megabytes."""
        with self._lock:
            path = self.folder / "large.txt"
            if not path.exists():
                path.write_bytes(self.text() * LARGE)
            return path

    def text(self) -> bytes:
        """Return the corpus of the plain runs."""
        found = self.uninterrupted("plain").cache.glob(f"lit_gpt_scratch/sample/*/{TEXT}.txt")
        return next(found).read_bytes()


class Site:
    """The folder, cache, run and random numbers of one fault.

    Args:
        prepared: The runs to copy or to compare with.
        kind: The kind of fault.
        number: The fault's number within its kind.
        setting: A name of `FLAGS`.

    Attributes:
        rng: Random numbers, seeded by the campaign's seed, kind and number.
        flags: Flags of `fit` in addition to those of the setting.
        env: Environment variables of its processes.
    """

    def __init__(self, prepared: Prepared, kind: str, number: int, setting: str = "plain") -> None:
        self.prepared, self.number, self.setting = prepared, number, setting
        self.folder = prepared.folder / f"{kind} {number}".replace(" ", "_")
        self.rng = random.Random(f"{prepared.seed} {kind} {number}")
        self.cache = self.folder / "cache"
        self.flags: list[str] = []
        self.env = {
            "XDG_CACHE_HOME": str(self.cache),
            "LIT_GPT_SCRATCH_DATA": str(self.folder / "data"),
            "OMP_NUM_THREADS": "1",
            "NO_PROXY": "127.0.0.1",
            "WANDB_MODE": "disabled",
        }
        self._count = 0

    def create(self, cached: bool = False) -> None:
        """Create the folder, and with `cached` copy a cache that has the corpus."""
        self.folder.mkdir(parents=True)
        if cached:
            shutil.copytree(self.prepared.uninterrupted(self.setting).cache, self.cache)

    def create_interrupted(self) -> None:
        """Create the folder with a copy of the interrupted run."""
        shutil.copytree(self.prepared.interrupted().folder, self.folder)
        self.flags = [f"--trainer.default_root_dir={self.folder}"]

    @property
    def run(self) -> Path:
        """Folder of the newest run."""
        runs = self.folder / "runs" / NAME
        found = [int(path.name[8:]) for path in runs.glob("version_*")]
        return runs / f"version_{max(found, default=0)}"

    def rows(self) -> list[str]:
        """Return the lines of the run's metrics.csv."""
        path = self.run / "metrics.csv"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def command(self, *args: str, file_limit: int | None = None) -> Process:
        """Start any command."""
        self._count += 1
        log = self.folder / f"output_{self._count}.txt"
        return Process(args, self.env, log, file_limit)

    def start(self, *more: str, file_limit: int | None = None) -> Process:
        """Start `fit` as a new run."""
        flags = [*FLAGS[self.setting], f"--name={NAME}"]
        if self.setting == "large":
            flags.append(f"--data.corpus={self.prepared.large_text()}")
        root = f"--trainer.default_root_dir={self.folder}"
        return self.command("fit", *flags, root, *self.flags, *more, file_limit=file_limit)

    def resume(
        self, *more: str, checkpoint: str = "last.ckpt", file_limit: int | None = None
    ) -> Process:
        """Start the command that `fit` prints for resuming."""
        config, path = self.run / "config.yaml", self.run / "checkpoints" / checkpoint
        flags = [f"--config={config}", f"--ckpt_path={path}", *self.flags, *more]
        return self.command("fit", *flags, file_limit=file_limit)

    def new_rows(self) -> Callable[[], bool]:
        """Return a condition for `wait_for`: the run has logged rows since this call."""
        before = self.run, len(self.rows())
        return lambda: (self.run, len(self.rows())) > before and len(self.rows()) > 1

    def finish(self, *more: str) -> str:
        """Resume to the end, or start again if there is no checkpoint, and check the result."""
        if not last(self.run).exists():
            self.start(*more).expect_success()
        elif self.step() < self.prepared.uninterrupted(self.setting).step():
            self.resume(*more).expect_success()
        return self.check_identical()

    def step(self) -> int:
        """Return the step of the run's last checkpoint."""
        return int(torch.load(last(self.run), weights_only=True)["global_step"])

    def check_identical(self, run: Path | None = None) -> str:
        """Check that a run equals the uninterrupted one and has left no temporary files."""
        run, expected = run or self.run, self.prepared.uninterrupted(self.setting).run
        assert same(state(run), state(expected)), "another result"
        best, other = (
            torch.load(path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
            for path in (run, expected)
        )
        assert same(best, other), "another best checkpoint"
        assert tables(run).keys() == tables(expected).keys(), "other files"
        for name, rows in tables(expected).items():
            assert tables(run)[name] == rows, f"other rows in {name}"
        pictures = [
            sorted(p.name for p in (path / "attention").iterdir()) for path in (run, expected)
        ]
        assert pictures[0] == pictures[1], "other pictures"
        leftovers = [str(path) for path in run.rglob(".*") if "wandb" not in path.parts]
        leftovers.remove(str(run / ".lock"))  # every run has it
        assert not leftovers, f"left behind: {leftovers}"
        return "the same run"


Fault = Callable[[Site], str]  # returns the outcome
Kinds = dict[str, tuple[int, Fault]]  # name: how many, and the function that does it
