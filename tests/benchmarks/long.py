"""The long run, to nanoGPT's published loss for a GPU and beyond: `make long`.

Trains gpt_cpu_long once for each seed, alone on all cores. Figures are kept in runs/long.json seed
by seed, so that the runs may be made one at a time; the tables go to runs/long.md.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean

from common import ROOT, SEEDS, fit, logged, machine, markdown, publish
from common import mean_and_range as mean_of
from common import median_and_range as median_of
from tqdm import tqdm

from lit_gpt_scratch.files import atomic_write
from lit_gpt_scratch.models.gpt import count_parameters
from lit_gpt_scratch.training.checkpointing import best_checkpoint

# What nanoGPT's README gives for its configuration for a GPU, the best published, and our aim.
THRESHOLDS = (1.4697, 1.4603, 1.45)
KEPT = ROOT / "runs" / "long.json"


@dataclass(frozen=True)
class Run:
    """One finished run: exact losses in nats per character, at each validation and at the end."""

    steps: list[int]
    seconds: list[float]
    losses: list[float]
    best: float
    train: float
    parameters: int

    def seconds_to(self, threshold: float) -> float:
        """Of training, until the validation loss is at most that; NaN: it never was."""
        curve = zip(self.seconds, self.losses, strict=True)
        return next((seconds for seconds, loss in curve if loss <= threshold), math.nan)


def run(seed: int) -> Run:
    """Train by the command line's own `fit`."""
    cli = fit("gpt_cpu_long", "--wandb.mode=disabled", f"--seed_everything={seed}")
    seconds, losses = zip(*logged(cli, "val/loss"), strict=True)
    return Run(
        steps=[int(step) for step, _ in logged(cli, "val/loss", by="step")],
        seconds=list(seconds),
        losses=list(losses),
        best=float(best_checkpoint(cli.trainer).best_model_score),  # type: ignore[arg-type]
        train=losses[-1] - float(cli.trainer.callback_metrics["val/gap"]),
        parameters=count_parameters(cli.model.net),
    )


def report(by_seed: dict[str, Run]) -> str:
    """Where they end, when they pass what is published, and the curve."""
    runs = list(by_seed.values())
    size = f"{runs[0].steps[-1]:,} steps, {runs[0].parameters:,} parameters"
    rows = [
        [f"seconds of training: {size}", median_of([r.seconds[-1] for r in runs], 0)],
        ["validation, last step", f"**{mean_of([r.losses[-1] for r in runs])}**"],
        ["validation, best checkpoint", mean_of([r.best for r in runs])],
        ["train, last step", mean_of([r.train for r in runs])],
    ]
    for threshold in THRESHOLDS:
        times = [r.seconds_to(threshold) for r in runs]
        late = math.isnan(sum(times))
        rows.append([f"seconds to {threshold}", "not by all" if late else median_of(times, 0)])
    curve = []
    for i, step in enumerate(runs[0].steps):
        seconds, losses = [r.seconds[i] for r in runs], [r.losses[i] for r in runs]
        curve.append([f"{step:,}", f"{mean(seconds):.0f}", mean_of(losses)])
    lines = [
        markdown(["gpt_cpu_long", ""], rows),
        f"Seeds {', '.join(by_seed)}. Nats per character, exact over the whole validation split, "
        f"mean and range; times without validation, median and range. {machine()}.",
        "<details><summary>The curve</summary>",
        markdown(["step", "seconds", "validation"], curve),
        "</details>",
    ]
    return "\n\n".join(lines)


def main(args: Sequence[str] | None = None) -> None:
    """Train the long run from the command line."""
    parser = argparse.ArgumentParser(prog="make long", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="default: all three")
    parser.add_argument("--readme", action="store_true", help="put the tables into README.md too")
    options = parser.parse_args(args)
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for seed in tqdm(options.seeds, desc="long", unit="run"):
        kept[str(seed)] = asdict(run(seed))
        with atomic_write(KEPT) as file:
            file.write(json.dumps(kept, indent=1).encode())
    publish("long", report({seed: Run(**kept[seed]) for seed in sorted(kept)}), options.readme)


if __name__ == "__main__":
    main()
