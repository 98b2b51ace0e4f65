"""Compare training with an older version of this project: `make versions OLD=PATH`.

PATH is a checkout of the older version; it runs with the packages of this one. For each seed, the
sides take turns: the old version, this one with an empty cache of compiled code, and this one
again, which finds that code in the cache. The table is saved in runs/versions.md.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from common import ROOT, SEEDS, median_and_range, publish, seconds_to, times_or_missed
from tqdm import tqdm

from lit_gpt_scratch.cli.compare import machine
from lit_gpt_scratch.runs.comparison import markdown_table, mean_and_range
from lit_gpt_scratch.runs.folder import validations

SIDES = ("old version", "this version, empty cache", "this version, full cache")


class Curve(NamedTuple):
    """Seconds of training and validation losses of a run."""

    seconds: list[float]
    losses: list[float]

    def seconds_to(self, loss: float) -> float:
        """Return the seconds of training until the loss is at most `loss`, or NaN."""
        return seconds_to(loss, zip(self.seconds, self.losses, strict=True))


def train(checkout: Path, config: str, seed: int, flags: Sequence[str], cache: Path) -> Curve:
    """Train in a process of its own, with the code of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *[sys.executable, "-m", "lit_gpt_scratch", "fit", "--config", f"configs/{config}.yaml"],
            *["--wandb.mode=disabled", f"--seed_everything={seed}", "--name=run"],
            *[f"--trainer.default_root_dir={folder}", *flags],
        ]
        subprocess.run(command, cwd=checkout, env=environment, capture_output=True, check=True)
        rows = validations(Path(folder) / "runs" / "run" / "version_0")
    seconds, losses = ([float(row[k]) for row in rows] for k in ("train_seconds", "val/loss"))
    return Curve(seconds, losses)


def report(config: str, found: dict[str, list[Curve]], goal: float) -> str:
    """Return the table of one config. One column has the seconds to the loss `goal`."""
    base = [curve.seconds[-1] for curve in found[SIDES[0]]]
    rows = [
        [config, "seconds of training", "ratio", f"seconds to {goal:.4f}", "loss at the last step"]
    ]
    for side, curves in found.items():
        seconds = [curve.seconds[-1] for curve in curves]
        ratios = [s / b for s, b in zip(seconds, base, strict=True)]
        times = [curve.seconds_to(goal) for curve in curves]
        rows.append(
            [
                side,
                median_and_range(seconds, 0),
                f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                times_or_missed(times),
                mean_and_range([curve.losses[-1] for curve in curves]),
            ]
        )
    return markdown_table(rows)


def main(args: Sequence[str] | None = None) -> None:
    """Compare two versions from the command line."""
    parser = argparse.ArgumentParser(prog="make versions", description=__doc__)
    parser.add_argument("--old", type=Path, required=True, help="a checkout of the old version")
    parser.add_argument("--config", default="gpt_cpu", help="default: gpt_cpu")
    parser.add_argument(
        "--goal", type=float, default=1.4893, help="report the seconds to this loss"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="default: three")
    parser.add_argument("--readme", action="store_true", help="write tests/benchmarks/README.md")
    options, flags = parser.parse_known_args(args)
    found: dict[str, list[Curve]] = {side: [] for side in SIDES}
    for seed in tqdm(options.seeds, desc="versions", unit="seed"):
        with tempfile.TemporaryDirectory() as cache:
            for side in SIDES:
                checkout = options.old.resolve() if side == SIDES[0] else ROOT
                curve = train(checkout, options.config, seed, flags, Path(cache))
                found[side].append(curve)
                tqdm.write(f"{seed} {side}: {curve.seconds[-1]:.0f} s, {curve.losses[-1]:.4f}")
    seeds = ", ".join(map(str, options.seeds))
    about = (
        f"Seeds {seeds}, in turns; times without validation, median and range; losses in nats per "
        f"character, mean and range. {machine()}."
    )
    table = report(options.config, found, options.goal)
    publish("versions", f"{table}\n\n{about}", options.readme)


if __name__ == "__main__":
    main()
