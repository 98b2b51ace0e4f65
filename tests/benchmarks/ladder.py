"""Train all rungs and compare them: `make ladder`.

Prints a table with a sample of each rung, and saves both in runs/ladder.md. The small rungs train
in parallel with one thread each, for three seeds. The larger rungs train alone, on all cores.
Finished runs in runs/ with the same settings and code are not repeated.
"""

import argparse
from collections.abc import Mapping, Sequence

import torch
from common import ROOT, SEEDS, publish, replace_section

from lit_gpt_scratch.cli.compare import compare, machine
from lit_gpt_scratch.errors import exit_on_input_error
from lit_gpt_scratch.inspection import load
from lit_gpt_scratch.runs.comparison import Outcome, markdown_table, mean_and_range
from lit_gpt_scratch.runs.folder import last_checkpoint
from lit_gpt_scratch.runs.summary import sample_text

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


Outcomes = Mapping[str, Sequence[Outcome]]  # the runs of each rung, in the order of the seeds


def run_all(corpus: str) -> dict[str, Sequence[Outcome]]:
    """Train all rungs, or take their finished runs from runs/.

    Raises:
        InputError: `fit` reported an error.
    """
    flags = ["--wandb.mode=disabled", f"--data.corpus={corpus}"]
    variants = {config: ["--config", config, *flags] for config in REFERENCE}
    small = {config: variants[config] for config in REFERENCE if config not in LARGE}
    outcomes: dict[str, Sequence[Outcome]] = {**compare(small, len(SEEDS), ROOT).outcomes}
    large = LARGE if torch.cuda.is_available() else LARGE[:-1]  # without gpt
    return outcomes | compare({config: variants[config] for config in large}, 1, ROOT, 1).outcomes


def row(config: str, runs: Sequence[Outcome], configs: str) -> list[str]:
    """Return the table's row of one rung.

    Args:
        configs: The folder of the configs, as the link names it.
    """
    name = f"[`{config}`]({configs}/{config}.yaml)"
    if not runs:
        return [name, REFERENCE[config], "needs a GPU: not run here", "", "", "", ""]
    return [
        name,
        REFERENCE[config],
        mean_and_range([run.train for run in runs]),
        f"**{mean_and_range([run.last for run in runs])}**",
        mean_and_range([run.best for run in runs]),
        f"{runs[0].parameters:,}",
        f"{max(run.seconds for run in runs):.0f} s",
    ]


def table(outcomes: Outcomes, configs: str = "configs") -> str:
    """Return the table and its note, in Markdown; `configs` is the folder that its links name."""
    header = ["config", "reference: train / validation", "train, last step"]
    header += ["validation, last step", "validation, best checkpoint", "parameters"]
    rows = [row(config, outcomes.get(config, ()), configs) for config in REFERENCE]
    note = (
        "Loss in nats per character (lower is better). Validation: all characters of the split. "
        "Train: a fixed sample of the training split, without dropout. "
        "A cell with a range is the mean (lowest to highest) of the seeds "
        f"{', '.join(map(str, SEEDS))}; other cells are of seed {SEEDS[0]}. The time is that of "
        f"the slowest seed, without validation; small rungs use one thread each. {machine()}."
    )
    return f"{markdown_table([[*header, 'training time'], *rows])}\n\n{note}"


def samples(texts: Mapping[str, str]) -> str:
    """Return the samples, in Markdown."""
    lines = []
    for config, text in texts.items():
        lines += [f"<details><summary>A sample of {config}</summary>", "", "```text"]
        lines += [text, "```", "", "</details>", ""]
    return "\n".join(lines)


def publish_ladder(outcomes: Outcomes, texts: Mapping[str, str], readme: bool) -> None:
    """Publish the table with the samples; with `readme`, write the table into README.md as well."""
    publish("ladder", f"{table(outcomes, '../../configs')}\n\n{samples(texts)}", readme)
    if readme:
        replace_section(ROOT / "README.md", "ladder", table(outcomes))


def main(args: Sequence[str] | None = None) -> None:
    """Run the ladder from the command line."""
    parser = argparse.ArgumentParser(prog="make ladder", description=__doc__)
    parser.add_argument("--corpus", default="tiny-shakespeare", help="as --data.corpus")
    parser.add_argument("--readme", action="store_true", help="write the tables into the READMEs")
    options = parser.parse_args(args)
    with exit_on_input_error("make ladder"):
        outcomes = run_all(options.corpus)
    models = {config: load(last_checkpoint(runs[0].folder)) for config, runs in outcomes.items()}
    texts = {config: sample_text(model, SEEDS[0]) for config, model in models.items()}
    publish_ladder(outcomes, texts, options.readme)


if __name__ == "__main__":
    main()
