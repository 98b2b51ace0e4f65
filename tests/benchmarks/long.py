"""Train gpt_cpu_long, and networks that learn from it: `make long`.

Trains each of them once for each seed, alone on all cores. Each run's numbers are saved in
runs/long.json, so that they can be trained one at a time. The tables are saved in runs/long.md.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from statistics import mean

from common import (
    ROOT,
    SEEDS,
    fit,
    logged,
    median_and_range,
    publish,
    seconds_to,
    times_or_missed,
)
from tqdm import tqdm

from lit_gpt_scratch.cli.compare import machine
from lit_gpt_scratch.files import atomic_write
from lit_gpt_scratch.models.gpt import count_parameters
from lit_gpt_scratch.runs.comparison import markdown_table, mean_and_range
from lit_gpt_scratch.training.checkpointing import best_checkpoint

# nanoGPT's published loss for a GPU; the lowest published loss of one network, tuned on this split;
# our goal for one network; and what gpt_cpu_long reached before passes and compiling.
THRESHOLDS = (1.4697, 1.4603, 1.41, 1.3712)
RESULTS = ROOT / "runs" / "long.json"
TEACHER = "gpt_cpu_long"
# What is trained: a name, the config, and more flags of `fit`.
RUNS: dict[str, tuple[str, list[str]]] = {
    TEACHER: (TEACHER, []),
    "gpt_cpu_distilled": ("gpt_cpu_distilled", []),
    # Fewer steps, so that the teacher and this network take 20 minutes together.
    "gpt_cpu_distilled, width 256": (
        "gpt_cpu_distilled",
        ["--model.net.width=256", "--model.net.attention.heads=4", "--trainer.max_steps=750"],
    ),
}


@dataclass(frozen=True)
class Run:
    """A finished run: exact losses in nats per character, at each validation and at the end."""

    steps: list[int]
    seconds: list[float]
    losses: list[float]
    best: float
    train: float
    with_counts: float  # the last step's loss, with a count model mixed in
    parameters: int

    def seconds_to(self, threshold: float) -> float:
        """Return the seconds of training until the loss is at most `threshold`, or NaN."""
        return seconds_to(threshold, zip(self.seconds, self.losses, strict=True))


def run(name: str, seed: int) -> Run:
    """Train with the command `fit`. A student's teacher is that of the same seed."""
    config, flags = RUNS[name]
    flags = [*flags, f"--seed_everything={seed}", "--wandb.mode=disabled"]
    # The weight was chosen for gpt_cpu_long on a slice of the training split.
    flags += ["--trainer.callbacks+=CountMixture", "--trainer.callbacks.weight=0.15"]
    flags += [f"--name={config}-{seed}"]
    if name != TEACHER:
        flags += [f"--model.teacher={ROOT / 'runs' / f'{TEACHER}-{seed}'}"]
    cli = fit(config, *flags)
    seconds, losses = zip(*logged(cli, "val/loss"), strict=True)
    return Run(
        steps=[int(step) for step, _ in logged(cli, "val/loss", by="step")],
        seconds=list(seconds),
        losses=list(losses),
        best=float(best_checkpoint(cli.trainer).best_model_score),  # type: ignore[arg-type]
        train=losses[-1] - float(cli.trainer.callback_metrics["val/gap"]),
        with_counts=logged(cli, "val/loss_with_counts")[-1][1],
        parameters=count_parameters(cli.model.net),
    )


def report(saved: dict[str, dict[str, Run]]) -> str:
    """Return the tables of all runs, in Markdown; `saved` has the runs of each name by seed."""
    tables = [table(name, saved[name]) for name in RUNS if name in saved]
    seeds = {", ".join(sorted(by_seed)) for by_seed in saved.values()}
    about = (
        f"Seeds {' / '.join(sorted(seeds))}. Nats per character, exact over the whole validation "
        "split, mean and range; times without validation, median and range; a student's time "
        f"includes the teacher's predictions, but not its training. {machine()}."
    )
    return "\n\n".join([*tables, about])


def table(name: str, by_seed: dict[str, Run]) -> str:
    """Return the final losses of a network, the seconds to each threshold, and the curve."""
    runs = list(by_seed.values())
    size = f"{runs[0].steps[-1]:,} steps, {runs[0].parameters:,} parameters"
    rows = [
        [f"seconds of training: {size}", median_and_range([r.seconds[-1] for r in runs], 0)],
        ["validation, last step", f"**{mean_and_range([r.losses[-1] for r in runs])}**"],
        ["validation, best checkpoint", mean_and_range([r.best for r in runs])],
        ["train, last step", mean_and_range([r.train for r in runs])],
        [
            "validation, with counts mixed in (`CountMixture`)",
            mean_and_range([r.with_counts for r in runs]),
        ],
    ]
    for threshold in THRESHOLDS:
        times = [r.seconds_to(threshold) for r in runs]
        rows.append([f"seconds to {threshold}", times_or_missed(times)])
    curve = []
    for i, step in enumerate(runs[0].steps):
        seconds, losses = [r.seconds[i] for r in runs], [r.losses[i] for r in runs]
        curve.append([f"{step:,}", f"{mean(seconds):.0f}", mean_and_range(losses)])
    lines = [
        markdown_table([[name, ""], *rows]),
        "<details><summary>The curve</summary>",
        markdown_table([["step", "seconds", "validation"], *curve]),
        "</details>",
    ]
    return "\n\n".join(lines)


def main(args: Sequence[str] | None = None) -> None:
    """Train the long run from the command line."""
    parser = argparse.ArgumentParser(prog="make long", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="default: all three")
    parser.add_argument("--only", choices=RUNS, nargs="+", default=list(RUNS), help="default: all")
    parser.add_argument("--readme", action="store_true", help="write tests/benchmarks/README.md")
    options = parser.parse_args(args)
    saved = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for seed, name in tqdm([*product(options.seeds, options.only)], desc="long", unit="run"):
        saved.setdefault(name, {})[str(seed)] = asdict(run(name, seed))
        with atomic_write(RESULTS) as file:
            file.write(json.dumps(saved, indent=1).encode())
    runs = {name: {seed: Run(**facts) for seed, facts in saved[name].items()} for name in saved}
    publish("long", report(runs), options.readme)


if __name__ == "__main__":
    main()
