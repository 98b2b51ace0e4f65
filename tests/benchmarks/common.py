"""What the benchmarks share: quiet runs, the README's tables, the machine they ran on."""

import contextlib
import csv
import io
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from lit_gpt_scratch.cli import main
from lit_gpt_scratch.cli.commands import CharCLI
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.files import atomic_write
from lit_gpt_scratch.training.optim import parameter_groups

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
SEEDS = (1337, 1338, 1339)
QUICK = ["--name=bench", "--wandb.mode=disabled", "--trainer.limit_val_batches=0"]
Figures = dict[str, list[float]]


def fit(config: str, *args: str) -> CharCLI:
    """Train a shipped config by the command line's own `fit`, without a word.

    Raises:
        InputError: `fit` refused.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return main(["fit", "--config", str(CONFIGS / f"{config}.yaml"), *args])
    except SystemExit as error:
        raise InputError(said.getvalue().strip().splitlines()[-1]) from error


def logged(cli: CharCLI, name: str, by: str = "train_seconds") -> list[tuple[float, float]]:
    """All that a run logged under a name, each with the seconds of training until then."""
    with (cli.folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get(name)]
    return [(float(row[by]), float(row[name])) for row in rows]


def mean_and_range(values: Sequence[float], digits: int = 4) -> str:
    """`mean (least to most)`, or the one value."""
    spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def median_and_range(values: Sequence[float], digits: int = 1) -> str:
    """`median (least to most)`."""
    least, most = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> str:
    """What figures were measured on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    name = torch.cpu.get_capabilities().get("cpu_name") or platform.processor()
    return f"{os.cpu_count()} cores of {name}, {device}, PyTorch {torch.__version__}"


def put_into(readme: Path, name: str, text: str) -> None:
    """Replace what stands between a name's two markers in a file."""
    begin, end = f"<!-- {name}: begin (make {name}) -->", f"<!-- {name}: end -->"
    old = readme.read_text(encoding="utf-8")
    before, after = old.split(begin)[0], old.split(end)[1]
    with atomic_write(readme) as file:
        file.write(f"{before}{begin}\n{text}\n{end}{after}".encode())


def publish(name: str, text: str, readme: bool) -> None:
    """Print a table, keep it as runs/NAME.md, and put it into the README where that is wanted."""
    print(text)
    with atomic_write(ROOT / "runs" / f"{name}.md") as file:
        file.write(text.encode())
    if readme:
        put_into(ROOT / "README.md", name, text)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def rounds(count: int, sides: dict[str, Callable[[], float]]) -> Figures:
    """Each side in turn, `count` times."""
    found: Figures = {name: [] for name in sides}
    for _ in tqdm(range(count), desc=" | ".join(sides), leave=False):
        for name, side in sides.items():
            found[name].append(side())
    return found


# Steps: a plain loop over the same batches, optimizer and schedule, and Lightning's.


def raw_loop(config: str, steps: int, *args: str) -> float:
    """Ms of a step of a plain PyTorch loop that does what the Trainer's steps do.

    As `under_trainer`: the median over stretches of as many steps as lie between two log lines.
    """
    cli = fit(config, *QUICK, "--trainer.max_steps=1", *args)
    model, data = cli.model.train(), cli.datamodule
    optimizer = model.make_optimizer(params=parameter_groups(model.net))
    schedule = model.make_schedule(optimizer=optimizer, steps=steps)
    bf16 = "bf16" in str(cli.trainer.precision)
    times = []
    for k in range(steps):
        start = time.perf_counter()
        batch = data.gather(data.train_windows(k))
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
    stretch = min(steps, int(cli.trainer.log_every_n_steps))
    means = [statistics.mean(times[i : i + stretch]) for i in range(0, steps, stretch)]
    return statistics.median(means[1:] or means)


def under_trainer(config: str, steps: int, *args: str) -> float:
    """Median ms of a step of `fit`, over the stretches between two lines of its log."""
    cli = fit(config, *QUICK, f"--trainer.max_steps={steps}", *args)
    chars = cli.datamodule.batch_size * cli.datamodule.context
    speeds = [speed for _, speed in logged(cli, "chars_per_sec")]
    return 1000 * chars / statistics.median(speeds[1:])


def callback_seconds(config: str, *args: str) -> dict[str, float]:
    """Seconds that each callback took in a whole run, by Lightning's profiler, and training did."""
    cli = fit(config, "--name=bench", "--wandb.mode=offline", "--trainer.profiler=simple", *args)
    spent: dict[str, float] = {}
    for action, durations in cli.trainer.profiler.recorded_durations.items():  # type: ignore[attr-defined]
        name = action.removeprefix("[Callback]").partition(".")[0].partition("{")[0]
        if action.startswith("[Callback]"):
            spent[name] = spent.get(name, 0.0) + sum(durations)
    return spent | {"training": float(cli.trainer.callback_metrics["train_seconds"])}
