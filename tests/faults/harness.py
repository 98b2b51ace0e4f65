"""What every fault needs: runs of the real command line, and what they must end as.

A fault has a `Site`: a folder, a cache and a run of its own, and random numbers. It breaks
something there and asks for one of three ends: the run that nobody touched, to the last bit; one
clear line and exit code 2; or the end that the signal asked for. All else raises `AssertionError`.
"""

import os
import random
import shutil
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
HANGS = 300  # seconds after which a process counts as hanging
TEXT = 20_000  # characters of the sample
NAME = "gpt_cpu"
# All that has a state: dropout, accumulation, averaged weights; rows and validations out of step.
PLAIN = [
    "--data.corpus=sample", f"--data.sample_size={TEXT}", "--data.context=16",
    "--data.batch_size=8", "--model.net.dropout=0.2", "--model.net.layers=2",
    "--model.net.width=32", "--trainer.accumulate_grad_batches=2", "--trainer.log_every_n_steps=7",
    "--trainer.val_check_interval=40", f"--trainer.max_steps={STEPS}",
    "--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging",
    "--trainer.callbacks.decay=0.9", "--trainer.accelerator=cpu", "--wandb.mode=disabled",
]  # fmt: skip
# Runs that some faults need; the last flag of a name counts.
FLAGS: dict[str, list[str]] = {
    "plain": PLAIN,
    # Most of its time goes into validations.
    "validating": [
        *PLAIN, "--data.val_fraction=0.5", "--trainer.max_steps=40",
        "--trainer.val_check_interval=4",
    ],
    # A text that takes a second and more to encode.
    "large": [*PLAIN, "--data.val_fraction=0.0005", "--trainer.max_steps=20"],
}  # fmt: skip
LARGE = 2000  # samples long


class Process:
    """The command line, running.

    Args:
        args: Its arguments.
        env: Its environment, besides this process' own.
        log: Where its standard error goes.
        room: Bytes that a file may grow to; None: any.
    """

    def __init__(
        self, args: Sequence[str], env: Mapping[str, str], log: Path, room: int | None = None
    ) -> None:
        command = [sys.executable, "-m", "lit_gpt_scratch", *args]
        if room is not None:
            command = ["prlimit", f"--fsize={room}", *command]
        self.log = log
        with log.open("w") as file:
            self.popen = subprocess.Popen(
                command,
                env=os.environ | env,
                stdout=subprocess.DEVNULL,
                stderr=file if room is None else subprocess.PIPE,  # a file would be limited, too
                text=True,
            )

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def until(self, seen: Callable[[], object]) -> bool:
        """Wait for something to be seen; whether it was, before the process' end."""
        since = time.monotonic()
        while self.popen.poll() is None:
            if seen():
                return True
            assert time.monotonic() - since < HANGS, f"hangs:\n{self.said}"
            time.sleep(0.0005)
        return bool(seen())

    def end(self) -> int:
        """The exit code."""
        try:
            code = self.popen.wait(HANGS)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            raise AssertionError(f"hangs:\n{self.said}") from None
        if self.popen.stderr:
            self.log.write_text(self.popen.stderr.read())
            self.popen.stderr.close()
            self.popen.stderr = None
        assert "Traceback" not in self.said, self.said
        return code

    def is_done(self) -> None:
        code = self.end()
        assert code == 0, f"exit {code}:\n{self.said}"

    def is_refused(self, *words: str) -> str:
        """With one line, which holds one of the words, if any are given."""
        code, said = self.end(), self.said
        lines = [line for line in said.splitlines() if "error:" in line.lower()]
        assert code == 2, f"exit {code}:\n{said}"
        assert len(lines) == 1, said
        assert not words or any(word in lines[0] for word in words), said
        return "one line"

    def is_stopped(self, number: int) -> None:
        """By a signal: at once, or in good order; or it was at its end already."""
        code = self.end()
        assert code in (-number, 128 + number, 0), f"exit {code}:\n{self.said}"

    def kill(self, number: int) -> None:
        self.popen.send_signal(number)
        self.is_stopped(number)


class Prepared:
    """What the sites of a campaign copy: runs that nobody touched, and one that was left halfway.

    Args:
        folder: For all of it.
        seed: Of the campaign.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self._one_at_a_time = threading.RLock()

    def whole(self, name: str) -> "Site":
        """A run by that name of `FLAGS`, from its beginning to its end."""
        with self._one_at_a_time:
            site = Site(self, f"whole {name}", 0, setting=name)
            if not site.folder.exists():
                site.make()
                site.start().is_done()
            return site

    def half(self) -> "Site":
        """A plain run that was asked to stop."""
        import signal

        with self._one_at_a_time:
            site = Site(self, "half", 0)
            if not site.folder.exists():
                shutil.copytree(self.whole("plain").cache, site.cache)
                process = site.start()
                process.until(lambda: len(site.rows()) > 12)
                process.kill(signal.SIGTERM)
                assert last(site.run).exists(), process.said
            return site

    def large(self) -> Path:
        """A text of tens of megabytes."""
        with self._one_at_a_time:
            path = self.folder / "large.txt"
            if not path.exists():
                path.write_bytes(self.text() * LARGE)
            return path

    def text(self) -> bytes:
        """What plain runs are trained on."""
        found = self.whole("plain").cache.glob(f"lit_gpt_scratch/sample/*/{TEXT}.txt")
        return next(found).read_bytes()


class Site:
    """A place for one fault.

    Args:
        prepared: What it takes from.
        kind: Of the fault.
        number: Of the fault among its kind.
        setting: A name of `FLAGS`.

    Attributes:
        draw: Random numbers of its own.
        flags: Of `fit`, beside those of the setting.
        env: The environment of its processes.
    """

    def __init__(self, prepared: Prepared, kind: str, number: int, setting: str = "plain") -> None:
        self.prepared, self.number, self.setting = prepared, number, setting
        self.folder = prepared.folder / f"{kind} {number}".replace(" ", "_")
        self.draw = random.Random(f"{prepared.seed} {kind} {number}")
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

    def make(self, warm: bool = False) -> None:
        """The folder, with a cache that has the text already, or an empty one."""
        self.folder.mkdir(parents=True)
        if warm:
            shutil.copytree(self.prepared.whole(self.setting).cache, self.cache)

    def make_half(self) -> None:
        """The folder, with a run that was left halfway."""
        half = self.prepared.half()
        shutil.copytree(half.folder, self.folder)
        self.flags = [f"--trainer.default_root_dir={self.folder}"]

    @property
    def run(self) -> Path:
        """The folder of the newest run."""
        runs = self.folder / "runs" / NAME
        found = [int(path.name[8:]) for path in runs.glob("version_*")]
        return runs / f"version_{max(found, default=0)}"

    def rows(self) -> list[str]:
        """Lines of its metrics.csv."""
        path = self.run / "metrics.csv"
        return path.read_text().splitlines() if path.exists() else []

    def call(self, *args: str, room: int | None = None) -> Process:
        """Any command."""
        self._count += 1
        log = self.folder / f"said_{self._count}.txt"
        return Process(args, self.env, log, room)

    def start(self, *more: str, room: int | None = None) -> Process:
        """`fit`, as a new run."""
        flags = [*FLAGS[self.setting], f"--name={NAME}"]
        if self.setting == "large":
            flags.append(f"--data.corpus={self.prepared.large()}")
        root = f"--trainer.default_root_dir={self.folder}"
        return self.call("fit", *flags, root, *self.flags, *more, room=room)

    def resume(self, *more: str, checkpoint: str = "last.ckpt", room: int | None = None) -> Process:
        """As `fit` says how to."""
        config, path = self.run / "config.yaml", self.run / "checkpoints" / checkpoint
        flags = [f"--config={config}", f"--ckpt_path={path}", *self.flags, *more]
        return self.call("fit", *flags, room=room)

    def training(self) -> Callable[[], bool]:
        """What to wait for: the run has logged something anew."""
        before = self.run, len(self.rows())
        return lambda: (self.run, len(self.rows())) > before and len(self.rows()) > 1

    def finish(self, *more: str) -> str:
        """Go on to the end, or begin again where nothing was saved; it must be right."""
        if not last(self.run).exists():
            self.start(*more).is_done()
        elif self.step() < self.prepared.whole(self.setting).step():
            self.resume(*more).is_done()
        return self.is_right()

    def step(self) -> int:
        return int(torch.load(last(self.run), weights_only=True)["global_step"])

    def is_right(self, run: Path | None = None) -> str:
        """As the run that nobody touched: weights, all state, every row; and no litter."""
        run, there = run or self.run, self.prepared.whole(self.setting).run
        assert same(state(run), state(there)), "another result"
        best, other = (
            torch.load(path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
            for path in (run, there)
        )
        assert same(best, other), "another best checkpoint"
        assert tables(run).keys() == tables(there).keys(), "other files"
        for name, rows in tables(there).items():
            assert tables(run)[name] == rows, f"other rows in {name}"
        pictures = [sorted(p.name for p in (path / "attention").iterdir()) for path in (run, there)]
        assert pictures[0] == pictures[1], "other pictures"
        litter = [str(path) for path in run.rglob(".*") if "wandb" not in path.parts]
        assert not litter, f"left behind: {litter}"
        return "the same run"


Fault = Callable[[Site], str]
Kinds = dict[str, tuple[int, Fault]]
