"""Functions that all benchmarks use: silent training runs, timing, tables in README files.

PyTorch and Lightning are imported inside functions, because `gpu.py` starts processes that import
them again.
"""

import contextlib
import csv
import io
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from lit_gpt_scratch.cli import main
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.files import atomic_write

if TYPE_CHECKING:
    from lit_gpt_scratch.cli.commands import CharCLI

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests"))  # the folder of chromium.py
from chromium import CHROMIUM as CHROMIUM  # noqa: E402
from chromium import Chromium as Chromium  # noqa: E402
from chromium import Page as Page  # noqa: E402
from chromium import until as until  # noqa: E402

CONFIGS = ROOT / "configs"
TABLES = ROOT / "tests" / "benchmarks" / "README.md"
SEEDS = (1337, 1338, 1339)
TOY = [f"--trainer.default_root_dir={ROOT / 'toys'}"]  # so that `best` is never such a run
QUICK = [*TOY, "--name=bench", "--wandb.mode=disabled", "--trainer.limit_val_batches=0"]
Figures = dict[str, list[float]]  # name: one number for each round


def fit(config: str, *args: str) -> "CharCLI":
    """Train a config of `configs/` with the command `fit`, and print nothing.

    Raises:
        InputError: `fit` reported an error.
    """
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            return main(["fit", "--config", str(CONFIGS / f"{config}.yaml"), *args])
    except SystemExit as error:
        raise InputError(output.getvalue().strip().splitlines()[-1]) from error


def logged(cli: "CharCLI", name: str, by: str = "train_seconds") -> list[tuple[float, float]]:
    """Return (seconds of training, value) for each row of metrics.csv that has the metric `name`.

    Args:
        by: The column to return in place of the seconds.
    """
    with (cli.folder / "metrics.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get(name)]
    return [(float(row[by]), float(row[name])) for row in rows]


def seconds_to(threshold: float, curve: Iterable[tuple[float, float]]) -> float:
    """Return the seconds until the loss is at most `threshold`, or NaN.

    `curve` has the seconds of training and the loss of each validation.
    """
    return next((spent for spent, loss in curve if loss <= threshold), math.nan)


def times_or_missed(times: Sequence[float], digits: int = 0) -> str:
    """Format seconds to a loss; if a run has missed it (NaN), say so."""
    return "not by all" if math.isnan(sum(times)) else median_and_range(times, digits)


def median_and_range(values: Sequence[float], digits: int = 1) -> str:
    """Format as `median (min to max)`."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def markers(name: str) -> tuple[str, str]:
    """Return the lines before and after a section that a benchmark writes."""
    return f"<!-- {name}: begin (make {name}) -->", f"<!-- {name}: end -->"


def read_section(path: Path, name: str) -> str:
    """Return the text between the two markers of a section in a Markdown file."""
    begin, end = markers(name)
    return path.read_text(encoding="utf-8").split(begin)[1].split(end)[0].strip("\n")


def replace_section(path: Path, name: str, text: str) -> None:
    """Replace the text between the two markers of a section in a Markdown file."""
    begin, end = markers(name)
    old = path.read_text(encoding="utf-8")
    before, after = old.split(begin)[0], old.split(end)[1]
    with atomic_write(path) as file:
        file.write(f"{before}{begin}\n{text}\n{end}{after}".encode())


def publish(name: str, text: str, readme: bool, folder: Path | None = None) -> None:
    """Print a result and save it as NAME.md in a folder; the default is runs/.

    Args:
        readme: Whether to write it into tests/benchmarks/README.md as well.
    """
    print(text)
    with atomic_write((folder or ROOT / "runs") / f"{name}.md") as file:
        file.write(text.encode())
    if readme:
        replace_section(TABLES, name, text)


def seconds(work: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def rounds(count: int, sides: dict[str, Callable[[], float]]) -> Figures:
    """Measure all sides of a comparison in turn, `count` times."""
    found: Figures = {name: [] for name in sides}
    for _ in tqdm(range(count), desc=" | ".join(sides), leave=False):
        for name, side in sides.items():
            found[name].append(side())
    return found


# The time of a training step, in a plain PyTorch loop and under Lightning's Trainer


def raw_loop(config: str, steps: int, *args: str) -> float:
    """Return the ms of a step in a plain PyTorch loop that does the same work as the Trainer.

    As in `under_trainer`, this is the median over intervals of `log_every_n_steps` steps.
    """
    import torch
    from torch.nn import functional as F

    from lit_gpt_scratch.training.optim import parameter_groups

    cli = fit(config, *QUICK, "--trainer.max_steps=1", *args)
    model, data = cli.model.train(), cli.datamodule
    optimizer = model.make_optimizer(params=parameter_groups(model.net))
    schedule = model.make_schedule(optimizer=optimizer, steps=steps)
    bf16 = "bf16" in str(cli.trainer.precision)
    times = []
    for k in range(steps):
        start = time.perf_counter()
        batch = data.read_windows(data.train_windows(k))
        torch.default_generator.manual_seed(batch.seed)  # as SeedDropout does
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model.net(batch.inputs)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        times.append(1000 * (time.perf_counter() - start))
    interval = min(steps, int(cli.trainer.log_every_n_steps))
    means = [statistics.mean(times[i : i + interval]) for i in range(0, steps, interval)]
    return statistics.median(means[1:] or means)


def under_trainer(config: str, steps: int, *args: str) -> float:
    """Return the median ms of a step of `fit`, over the intervals between two rows of its log."""
    cli = fit(config, *QUICK, f"--trainer.max_steps={steps}", *args)
    chars = cli.datamodule.batch_size * cli.datamodule.context
    speeds = [speed for _, speed in logged(cli, "chars_per_sec")]
    return 1000 * chars / statistics.median(speeds[1:])


def callback_seconds(config: str, *args: str) -> dict[str, float]:
    """Return the seconds that each callback took in a run, and the seconds of training.

    Lightning's profiler measures the callbacks.
    """
    flags = ["--name=bench", "--wandb.mode=offline", "--trainer.profiler=simple"]
    cli = fit(config, *TOY, *flags, *args)
    spent: dict[str, float] = {}
    for action, durations in cli.trainer.profiler.recorded_durations.items():  # type: ignore[attr-defined]
        name = action.removeprefix("[Callback]").partition(".")[0].partition("{")[0]
        if action.startswith("[Callback]"):
            spent[name] = spent.get(name, 0.0) + sum(durations)
    return spent | {"training": float(cli.trainer.callback_metrics["train_seconds"])}
