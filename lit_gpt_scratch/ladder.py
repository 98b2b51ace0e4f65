"""All rungs, trained and compared: `python -m lit_gpt_scratch.ladder`, or `make ladder`.

Prints the README's table with a sample of each rung, and writes both to runs/ladder.md. The small
rungs run side by side, one thread each, for three seeds; the larger ones alone, on all cores.
"""

import argparse
import contextlib
import io
import os
import platform
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

from lit_gpt_scratch.cli import main as run_cli
from lit_gpt_scratch.corpus import written_whole
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models import count_parameters
from lit_gpt_scratch.runs import best_checkpoint
from lit_gpt_scratch.sampling import SamplingSettings

CONFIGS = Path(__file__).parents[1] / "configs"
SEEDS = (1337, 1338, 1339)
# Train and validation loss of the reference, "GPT from Scratch", as printed at iteration 4,800.
REFERENCE = {
    "bigram": "2.5403 / 2.5804",
    "mean": "none given",
    "single_head": "2.3643 / 2.4116",
    "multi_head": "2.2181 / 2.2773",
    "transformer": "2.0859 / 2.1728",
    "gpt_cpu": "at most 1.85 validation",
    "gpt": "1.0583 / 1.6357",
}
LARGE = ("gpt_cpu", "gpt")
BEGIN, END = "<!-- ladder: begin (make ladder) -->", "<!-- ladder: end -->"


@dataclass(frozen=True)
class Result:
    """One finished run: exact losses in nats per character, and a text."""

    config: str
    parameters: int
    train: float
    last: float
    best: float
    seconds: float
    sample: str


def run(config: str, seed: int, corpus: str) -> Result:
    """Train one rung by the command line's own `fit`.

    Raises:
        InputError: `fit` refused.
    """
    arguments = ["fit", "--config", str(CONFIGS / f"{config}.yaml"), "--wandb.mode", "disabled"]
    arguments += ["--seed_everything", str(seed), "--data.corpus", corpus]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            cli = run_cli(arguments)
    except SystemExit as error:
        raise InputError(said.getvalue().strip().splitlines()[-1]) from error
    metrics = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    best = best_checkpoint(cli.trainer)
    sampling = SamplingSettings(max_new_tokens=300, temperature=0.8, seed=SEEDS[0])
    prompt = cli.model.tokenizer.encode(cli.model.default_prompt)[None].to(cli.model.device)
    return Result(
        config=config,
        parameters=count_parameters(cli.model.net),
        train=metrics["val/loss"] - metrics["val/gap"],
        last=metrics["val/loss"],
        best=float(best.best_model_score),  # type: ignore[arg-type]
        seconds=metrics["train_seconds"],
        sample=cli.model.generate(prompt, sampling)[0].strip(),
    )


def run_all(corpus: str) -> Iterator[Result]:
    """Every run of the ladder, as it finishes."""
    small = [(config, seed) for config in REFERENCE if config not in LARGE for seed in SEEDS]
    workers = os.cpu_count() or 1
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        jobs = [pool.submit(run, config, seed, corpus) for config, seed in small]
        for job in jobs:
            yield job.result()
    yield run("gpt_cpu", SEEDS[0], corpus)
    if torch.cuda.is_available():
        yield run("gpt", SEEDS[0], corpus)


def mean_and_range(values: Sequence[float]) -> str:
    """`mean (least to most)`, or the one value."""
    mean = sum(values) / len(values)
    spread = f" ({min(values):.4f} to {max(values):.4f})" if len(values) > 1 else ""
    return f"{mean:.4f}{spread}"


def row(config: str, results: Sequence[Result]) -> str:
    """The table's line of one rung."""
    name = f"[`{config}`](configs/{config}.yaml)"
    if not results:
        return f"| {name} | {REFERENCE[config]} | needs a GPU: not run here | | | | |"
    first = results[0]
    columns = [
        name,
        REFERENCE[config],
        mean_and_range([r.train for r in results]),
        f"**{mean_and_range([r.last for r in results])}**",
        mean_and_range([r.best for r in results]),
        f"{first.parameters:,}",
        f"{max(r.seconds for r in results):.0f} s",
    ]
    return f"| {' | '.join(columns)} |"


def report(results: Sequence[Result]) -> str:
    """The table and the samples, in Markdown."""
    by_config = {c: [r for r in results if r.config == c] for c in REFERENCE}
    lines = [
        "| config | reference: train / validation | train, last step | validation, last step "
        "| validation, best checkpoint | parameters | training time |",
        "|---|---|---|---|---|---|---|",
        *(row(config, found) for config, found in by_config.items()),
        "",
        f"Nats per character, exact over the whole validation split; mean and range of the seeds "
        f"{', '.join(map(str, SEEDS))}, where a range is given, else seed {SEEDS[0]}. "
        f"{machine()}",
        "",
    ]
    for config, found in by_config.items():
        if found:
            lines += [f"<details><summary>A sample of {config}</summary>", "", "```text"]
            lines += [found[0].sample, "```", "", "</details>", ""]
    return "\n".join(lines)


def machine() -> str:
    """What the figures were measured on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{os.cpu_count()} cores of {platform.machine()}, {device}, PyTorch {torch.__version__}: "
        "small rungs one thread each, times the slowest seed's, without validation."
    )


def put_into(readme: Path, text: str) -> None:
    """Replace what stands between the two markers of a file."""
    old = readme.read_text(encoding="utf-8")
    before, after = old.split(BEGIN)[0], old.split(END)[1]
    with written_whole(readme) as file:
        file.write(f"{before}{BEGIN}\n{text}\n{END}{after}".encode())


def main(args: Sequence[str] | None = None) -> None:
    """Run the ladder from the command line."""
    parser = argparse.ArgumentParser(prog="python -m lit_gpt_scratch.ladder", description=__doc__)
    parser.add_argument("--corpus", default="tiny-shakespeare", help="as --data.corpus")
    parser.add_argument("--readme", type=Path, help="put the table between this file's markers")
    options = parser.parse_args(args)
    total = len(SEEDS) * (len(REFERENCE) - len(LARGE)) + 1 + torch.cuda.is_available()
    try:
        results = list(tqdm(run_all(options.corpus), total=total, desc="ladder", unit="run"))
    except InputError as error:
        parser.exit(2, f"{error}\n")
    text = report(results)
    with written_whole(Path("runs/ladder.md")) as file:
        file.write(text.encode())
    print(text)
    if options.readme:
        put_into(options.readme, text)


if __name__ == "__main__":
    main()
