"""One part of `make bench`: the time that saving a checkpoint and resuming take."""

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from common import CONFIGS, QUICK, Figures, fit, median_and_range, rounds, seconds
from lightning.pytorch.callbacks import Callback

from lit_gpt_scratch.runs.comparison import markdown_table
from lit_gpt_scratch.training.checkpointing import SignalCheckpoint

EVERY = 10  # steps between two checkpoints
MINUTES = 5  # between two checkpoints of `fit`


class TimedSaves(Callback):
    """Save a checkpoint every EVERY steps and record the seconds of each."""

    times: ClassVar[list[float]] = []

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx and batch_idx % EVERY == 0:
            saver = next(c for c in trainer.callbacks if isinstance(c, SignalCheckpoint))
            self.times.append(seconds(lambda: saver.save(trainer)))


class ExitAtFirstStep(Callback):
    """Print the time at the first step and end the process."""

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        print(f"\n{time.time()}", flush=True)
        os._exit(0)


def until_first_step(root: str, *args: str) -> float:
    """Return the seconds from the start of a `fit` process of gpt_cpu to its first step."""
    command = [sys.executable, "-m", "lit_gpt_scratch", "fit", f"--config={CONFIGS}/gpt_cpu.yaml"]
    command += ["--trainer.callbacks+=checkpoint_cost.ExitAtFirstStep", "--name=bench", *args]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    start = time.time()
    done = subprocess.run(
        [*command, f"--trainer.default_root_dir={root}"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout.split()[-1]) - start


def checkpoints(_peer: object, count: int) -> tuple[Figures, str]:
    """Seconds to save a checkpoint of gpt_cpu, and to the first step of a new and a resumed run."""
    TimedSaves.times = []
    steps = EVERY * (count + 1)
    with TemporaryDirectory() as root:
        flags = [f"--trainer.max_steps={steps}", f"--trainer.default_root_dir={root}"]
        cli = fit("gpt_cpu", *QUICK, *flags, "--trainer.callbacks+=checkpoint_cost.TimedSaves")
        last = cli.folder / "checkpoints" / "last.ckpt"
        found: Figures = {"a checkpoint, s": TimedSaves.times}
        found |= rounds(
            count,
            {
                "first step of a fresh run, s": lambda: until_first_step(root),
                "first step of a resumed run, s": lambda: until_first_step(
                    root, f"--ckpt_path={last}"
                ),
            },
        )
        size = last.stat().st_size / 1e6
    table = [[name, median_and_range(values, 3)] for name, values in found.items()]
    share = 100 * max(TimedSaves.times) / (60 * MINUTES)
    table.insert(1, [f"of every {MINUTES} minutes, at most", f"{share:.3f} %"])
    return found, markdown_table([["gpt_cpu", f"a checkpoint of {size:.1f} MB"], *table])
