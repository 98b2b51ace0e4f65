"""Train all rungs and compare them: `make ladder`.

Prints a table with a sample of each rung, and saves both in runs/ladder.md. The small rungs train
in parallel with one thread each, for three seeds. The larger rungs train alone, on all cores.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch
from common import (
    ROOT,
    SEEDS,
    fit,
    machine,
    markdown,
    mean_and_range,
    publish,
    replace_section,
)
from tqdm import tqdm

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models.gpt import count_parameters
from lit_gpt_scratch.runs.summary import sample_text
from lit_gpt_scratch.training.checkpointing import best_checkpoint

# Training and validation loss that the reference, "GPT from Scratch", prints at iteration 4,800.
REFERENCE = {
    "bigram": "2.5403 / 2.5804",
    "mean": "none given",
    "single_head": "2.3643 / 2.4116",
    "multi_head": "2.2181 / 2.2773",
    "transformer": "2.0859 / 2.1728",
    "gpt_cpu_classic": "at most 1.85 validation",
    "gpt_cpu": "none given (gpt: 1.0583 / 1.6357)",
    "gpt": "1.0583 / 1.6357",
}
LARGE = ("gpt_cpu_classic", "gpt_cpu", "gpt")


@dataclass(frozen=True)
class Result:
    """A finished run: exact losses in nats per character, and a sample."""

    config: str
    parameters: int
    train: float
    last: float
    best: float
    seconds: float
    sample: str


def run(config: str, seed: int, corpus: str) -> Result:
    """Train one rung with the command `fit`.

    Raises:
        InputError: `fit` reported an error.
    """
    flags = ["--wandb.mode", "disabled", "--data.corpus", corpus]
    cli = fit(config, "--seed_everything", str(seed), *flags)
    metrics = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    return Result(
        config=config,
        parameters=count_parameters(cli.model.net),
        train=metrics["val/loss"] - metrics["val/gap"],
        last=metrics["val/loss"],
        best=float(best_checkpoint(cli.trainer).best_model_score),  # type: ignore[arg-type]
        seconds=metrics["train_seconds"],
        sample=sample_text(cli.model, SEEDS[0]),
    )


def run_all(corpus: str) -> Iterator[Result]:
    """Yield the result of each run of the ladder."""
    small = [(config, seed) for config in REFERENCE if config not in LARGE for seed in SEEDS]
    workers = os.cpu_count() or 1
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        jobs = [pool.submit(run, config, seed, corpus) for config, seed in small]
        for job in jobs:
            yield job.result()
    for config in LARGE:
        if config != "gpt" or torch.cuda.is_available():
            yield run(config, SEEDS[0], corpus)


def row(config: str, results: Sequence[Result], configs: str) -> list[str]:
    """Return the table's row of one rung.

    Args:
        configs: The folder of the configs, as the link names it.
    """
    name = f"[`{config}`]({configs}/{config}.yaml)"
    if not results:
        return [name, REFERENCE[config], "needs a GPU: not run here", "", "", "", ""]
    first = results[0]
    return [
        name,
        REFERENCE[config],
        mean_and_range([r.train for r in results]),
        f"**{mean_and_range([r.last for r in results])}**",
        mean_and_range([r.best for r in results]),
        f"{first.parameters:,}",
        f"{max(r.seconds for r in results):.0f} s",
    ]


def table(results: Sequence[Result], configs: str = "configs") -> str:
    """Return the table and its note, in Markdown; `configs` is the folder that its links name."""
    header = ["config", "reference: train / validation", "train, last step"]
    header += ["validation, last step", "validation, best checkpoint", "parameters"]
    rows = [row(c, [r for r in results if r.config == c], configs) for c in REFERENCE]
    note = (
        "Loss in nats per character (lower is better). Validation: all characters of the split. "
        "Train: a fixed sample of the training split, without dropout. "
        "A cell with a range is the mean (lowest to highest) of the seeds "
        f"{', '.join(map(str, SEEDS))}; other cells are of seed {SEEDS[0]}. The time is that of "
        f"the slowest seed, without validation; small rungs use one thread each. {machine()}."
    )
    return f"{markdown([*header, 'training time'], rows)}\n\n{note}"


def samples(results: Sequence[Result]) -> str:
    """Return one sample of each rung, in Markdown."""
    first = {result.config: result.sample for result in reversed(results)}
    lines = []
    for config in REFERENCE:
        if config in first:
            lines += [f"<details><summary>A sample of {config}</summary>", "", "```text"]
            lines += [first[config], "```", "", "</details>", ""]
    return "\n".join(lines)


def publish_ladder(results: Sequence[Result], readme: bool) -> None:
    """Publish the table with the samples; with `readme`, write the table into README.md as well."""
    publish("ladder", f"{table(results, '../../configs')}\n\n{samples(results)}", readme)
    if readme:
        replace_section(ROOT / "README.md", "ladder", table(results))


def main(args: Sequence[str] | None = None) -> None:
    """Run the ladder from the command line."""
    parser = argparse.ArgumentParser(prog="make ladder", description=__doc__)
    parser.add_argument("--corpus", default="tiny-shakespeare", help="as --data.corpus")
    parser.add_argument("--readme", action="store_true", help="write the tables into the READMEs")
    options = parser.parse_args(args)
    total = len(SEEDS) * (len(REFERENCE) - len(LARGE)) + 2 + torch.cuda.is_available()
    try:
        results = list(tqdm(run_all(options.corpus), total=total, desc="ladder", unit="run"))
    except InputError as error:
        parser.exit(2, f"{error}\n")
    publish_ladder(results, options.readme)


if __name__ == "__main__":
    main()
