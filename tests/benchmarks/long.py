"""Train gpt_cpu_long, which goes below nanoGPT's published loss for a GPU: `make long`.

Trains once for each seed, alone on all cores. Each seed's numbers are saved in runs/long.json, so
that the seeds can be trained one at a time. The tables are saved in runs/long.md.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean

from common import (
    ROOT,
    SEEDS,
    fit,
    logged,
    median_and_range,
    publish,
)
from tqdm import tqdm

from lit_gpt_scratch.cli.compare import machine
from lit_gpt_scratch.files import atomic_write
from lit_gpt_scratch.models.gpt import count_parameters
from lit_gpt_scratch.runs.comparison import markdown_table, mean_and_range
from lit_gpt_scratch.training.checkpointing import best_checkpoint

# nanoGPT's published loss for a GPU, the best published loss of one network, and our goal.
THRESHOLDS = (1.4697, 1.4603, 1.45)
RESULTS = ROOT / "runs" / "long.json"


@dataclass(frozen=True)
class Run:
    """A finished run: exact losses in nats per character, at each validation and at the end."""

    steps: list[int]
    seconds: list[float]
    losses: list[float]
    best: float
    train: float
    parameters: int

    def seconds_to(self, threshold: float) -> float:
        """Return the seconds of training until the loss is at most `threshold`, or NaN."""
        curve = zip(self.seconds, self.losses, strict=True)
        return next((seconds for seconds, loss in curve if loss <= threshold), math.nan)


def run(seed: int) -> Run:
    """Train with the command `fit`."""
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
    """Return the final losses, the time to each threshold and the loss curve, in Markdown."""
    runs = list(by_seed.values())
    size = f"{runs[0].steps[-1]:,} steps, {runs[0].parameters:,} parameters"
    rows = [
        [f"seconds of training: {size}", median_and_range([r.seconds[-1] for r in runs], 0)],
        ["validation, last step", f"**{mean_and_range([r.losses[-1] for r in runs])}**"],
        ["validation, best checkpoint", mean_and_range([r.best for r in runs])],
        ["train, last step", mean_and_range([r.train for r in runs])],
    ]
    for threshold in THRESHOLDS:
        times = [r.seconds_to(threshold) for r in runs]
        missed = math.isnan(sum(times))
        cell = "not by all" if missed else median_and_range(times, 0)
        rows.append([f"seconds to {threshold}", cell])
    curve = []
    for i, step in enumerate(runs[0].steps):
        seconds, losses = [r.seconds[i] for r in runs], [r.losses[i] for r in runs]
        curve.append([f"{step:,}", f"{mean(seconds):.0f}", mean_and_range(losses)])
    lines = [
        markdown_table([["gpt_cpu_long", ""], *rows]),
        f"Seeds {', '.join(by_seed)}. Nats per character, exact over the whole validation split, "
        f"mean and range; times without validation, median and range. {machine()}.",
        "<details><summary>The curve</summary>",
        markdown_table([["step", "seconds", "validation"], *curve]),
        "</details>",
    ]
    return "\n\n".join(lines)


def main(args: Sequence[str] | None = None) -> None:
    """Train the long run from the command line."""
    parser = argparse.ArgumentParser(prog="make long", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="default: all three")
    parser.add_argument("--readme", action="store_true", help="write tests/benchmarks/README.md")
    options = parser.parse_args(args)
    saved = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for seed in tqdm(options.seeds, desc="long", unit="run"):
        saved[str(seed)] = asdict(run(seed))
        with atomic_write(RESULTS) as file:
            file.write(json.dumps(saved, indent=1).encode())
    publish("long", report({seed: Run(**saved[seed]) for seed in sorted(saved)}), options.readme)


if __name__ == "__main__":
    main()
