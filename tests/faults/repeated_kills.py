"""Kill one run many times and compare it with an uninterrupted one: a part of `make faults`.

Real processes of the command line are killed by SIGKILL, SIGTERM or SIGINT at random moments: while
they start, train, validate, save or stop. Each next process resumes from the last checkpoint, or
starts again if there is none. At the end, the weights, optimizer, averaged weights and every row of
the tables (except times) must equal those of an uninterrupted run.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))
from compare_runs import last, same, state, tables

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
FLAGS = [
    "--data.corpus=sample", "--data.sample_size=20000", "--data.context=32", "--data.batch_size=64",
    "--model.net.dropout=0.2", "--model.net.width=64", "--trainer.accumulate_grad_batches=2",
    "--trainer.log_every_n_steps=7", "--trainer.val_check_interval=30",
    "--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging",
    "--trainer.callbacks.decay=0.9", "--trainer.accelerator=cpu", "--wandb.mode=disabled",
]  # fmt: skip


def start(root: Path, steps: int, *more: str) -> subprocess.Popen[str]:
    """Start `fit` as a process, with its run in a folder."""
    flags = [*FLAGS, f"--trainer.max_steps={steps}", f"--trainer.default_root_dir={root}"]
    return subprocess.Popen(
        [sys.executable, "-m", "lit_gpt_scratch", "fit", *flags, *more],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # two threads wait for each other under load
    )  # fmt: skip


def wait_for_rows(table: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a run writes to a table, or ends."""
    start = time.time()
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            if table.stat().st_mtime > start:
                return
        time.sleep(0.01)


def campaign(kills: int, steps: int, seed: int, root: Path) -> Counter[str]:
    """Kill a run `kills` times, let it finish, and compare it with an uninterrupted run.

    Returns:
        The count of each signal and exit code.
    """
    rng = random.Random(seed)
    other = start(root / "uninterrupted", steps)
    assert other.wait() == 0, other.stderr.read() if other.stderr else ""
    folder = root / "killed" / "runs" / "gpt_cpu" / "version_0"
    seen: Counter[str] = Counter()
    bar = tqdm(total=kills, desc="kills", unit="kill")
    while True:
        more = [f"--ckpt_path={last(folder)}"] if last(folder).exists() else ["--name=gpt_cpu"]
        if folder.exists() and not last(folder).exists():
            for path in sorted(folder.rglob("*"), reverse=True):  # no checkpoint: start again
                path.unlink() if path.is_file() else path.rmdir()
            folder.rmdir()
        process = start(root / "killed", steps, *more)
        number = rng.choice(SIGNALS)
        if bar.n < kills:
            if rng.random() < 0.75:  # otherwise kill it while it starts
                wait_for_rows(folder / "metrics.csv", process)
            time.sleep(rng.uniform(0, 4))
            process.send_signal(number)
        _, stderr = process.communicate()
        assert "Traceback" not in stderr, stderr
        assert process.returncode in (0, -number, 128 + number), stderr
        if process.returncode == 0 or (
            last(folder).exists() and state(folder)["global_step"] == steps
        ):
            break
        seen[f"{signal.Signals(number).name}: exit {process.returncode}"] += 1
        bar.update()
    bar.close()
    assert bar.n == kills, f"the run ended after {bar.n} kills: give it more steps"
    expected = root / "uninterrupted" / "runs" / "gpt_cpu" / "version_0"
    assert same(state(folder), state(expected)), "another result"
    assert tables(folder) == tables(expected), "other rows"
    return seen


def main(args: Sequence[str] | None = None) -> None:
    """Run the campaign from the command line."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="number of kills (default: 20)")
    parser.add_argument("--steps", type=int, default=1500, help="steps of the run (default: 1500)")
    parser.add_argument("--seed", type=int, default=1337, help="default: 1337")
    options = parser.parse_args(args)
    with tempfile.TemporaryDirectory() as root:
        seen = campaign(options.kills, options.steps, options.seed, Path(root))
    for kind, count in sorted(seen.items()):
        print(f"{count:4} {kind}")
    print(f"{sum(seen.values()):4} in all: the same run to the last bit")


if __name__ == "__main__":
    main()
