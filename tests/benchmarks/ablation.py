"""Measure what each part of ModernGPT is worth, and which additions do not help: `make ablation`.

Every variant trains like gpt_cpu, most of them with fewer steps. A tenth of the training split is
held out, and the variants are compared by the loss on it, so that they never see the validation
split. The runs are in comparisons/; finished ones are not repeated.
"""

import argparse
import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

from common import SEEDS, publish

from lit_gpt_scratch.checkpoints.plugins import import_plugin
from lit_gpt_scratch.cli import main as main_program
from lit_gpt_scratch.cli.compare import FOLDER, compare
from lit_gpt_scratch.errors import exit_on_input_error
from lit_gpt_scratch.runs.comparison import Outcome, markdown_table, mean_and_range

# Eight tenths of the corpus for training, one held out; the last is the validation split.
SLICE = ["--data.val_fraction=0.1", "--data.test_fraction=0.1"]
ADAMW = "lit_gpt_scratch.training.AdamW"
COSINE = "lit_gpt_scratch.training.WarmupCosine"
# The variants: a name, and the flags of `fit` that produce it. First, parts that gpt_cpu has.
KEPT: dict[str, list[str]] = {
    "as it is": ["--model.net=variants.Variant"],
    # A class that replaces another keeps the lr and the warm-up of gpt_cpu.yaml. Muon's lr is wrong
    # for AdamW, so it is set here. The warm-up is kept: only the decay differs.
    "AdamW (lr 0.004) instead of Muon": [
        f"--model.optimizer={ADAMW}",
        "--model.optimizer.lr=0.004",
    ],
    "cosine decay to 2 % of the peak, warm-up 20, instead of plateau and line": [
        f"--model.schedule={COSINE}"
    ],
    "windows drawn at random instead of passes": ["--data.order=random"],
    "learned positions instead of rotary": ["--model.net=variants.LearnedPositions"],
    "no token shift": ["--model.net=variants.NoTokenShift"],
    "GELU instead of squared ReLU": ["--model.net=variants.GELUFeedForward"],
    "SwiGLU instead of squared ReLU": ["--model.net=variants.SwiGLUFeedForward"],
    "no QK-norm": ["--model.net=variants.NoQKNorm"],
    "LayerNorm instead of RMSNorm": ["--model.net=variants.LayerNorms"],
    "projections random at the start, not zero": ["--model.net=variants.RandomProjections"],
    "1 head": ["--model.net.attention.heads=1"],
    "4 heads": ["--model.net.attention.heads=4"],
    "3 Newton-Schulz iterations": ["--model.optimizer.iterations=3"],
}
# Parts that gpt_cpu does not have.
LEFT_OUT: dict[str, list[str]] = {
    "logit soft-cap": ["--model.net=variants.SoftCap"],
    "attention and feed-forward side by side": ["--model.net=variants.ParallelBlocks"],
    "U-net skips": ["--model.net=variants.UNetSkips"],
    "embedding mixed into every block": ["--model.net=variants.EmbeddingInEveryBlock"],
    "value embeddings": ["--model.net=variants.ValueEmbeddings"],
    "head gates": ["--model.net=variants.HeadGates"],
    "bigram embedding": ["--model.net=variants.NGramEmbedding"],
    "trigram embedding": ["--model.net=variants.TrigramEmbedding"],
    "dropout 0.1": ["--model.net.dropout=0.1"],
    "weights averaged over about 20 steps": [
        "--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging",
        "--trainer.callbacks.decay=0.95",
    ],
}
# What may help where the corpus is small, so that a longer run reads it several times.
LONGER: dict[str, list[str]] = {
    "as it is, with 700 steps": ["--model.net=variants.Variant"],
    "weight decay 0.1": ["--model.optimizer.weight_decay=0.1"],
    "weight decay 0.5": ["--model.optimizer.weight_decay=0.5"],
    "width 256, weight decay 0.5": [
        "--model.net.width=256",
        "--model.net.attention.heads=4",
        "--model.optimizer.weight_decay=0.5",
    ],
    "token noise": ["--model.net=variants.TokenNoise"],
    "two characters ahead": ["--model.net=variants.TwoAhead"],
    "the two middle blocks twice, in the second half": ["--model.net=variants.LoopedLate"],
    "NorMuon instead of Muon": ["--model.optimizer=variants.NorMuon"],
    "the mean of two snapshots, one of each half": [
        "--model.net=variants.Snapshots",
        "--model.schedule=variants.Cycles",
    ],
}
VARIANTS = KEPT | LEFT_OUT | LONGER


def validate(outcome: Outcome, *flags: str) -> dict[str, float]:
    """Return the metrics of the command `validate` for the last step of a run."""
    last = outcome.folder / "checkpoints" / "last.ckpt"
    command = ["validate", "--ckpt_path", str(last), "--plugin", "variants", *flags]
    with contextlib.redirect_stdout(io.StringIO()):
        metrics = main_program(command).trainer.callback_metrics
    return {name: float(value) for name, value in metrics.items()}


def with_counts(outcomes: Sequence[Outcome]) -> str:
    """Return the losses of networks, and those of the same networks with a count model mixed in."""
    mix = "--trainer.callbacks+=CountMixture"
    mixed = [validate(outcome, mix) for outcome in outcomes]
    counted = validate(outcomes[0], mix, "--trainer.callbacks.weight=1")["val/loss_with_counts"]
    both = mean_and_range([metrics["val/loss_with_counts"] for metrics in mixed])
    rows = [
        ["", "loss"],
        ["the networks of the first line", mean_and_range([m["val/loss"] for m in mixed])],
        ["`CountMixture`: counts mixed in", both],
        ["counts alone", f"{counted:.4f}"],
    ]
    return markdown_table(rows)


def run_all(steps: int) -> str:
    """Train every variant with every seed; return the tables in Markdown."""
    # `fit` finds the networks of variants.py by this path.
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    import_plugin("variants")
    shared = ["--config=gpt_cpu", "--wandb.mode=disabled", *SLICE]
    base = dict([next(iter(KEPT.items()))])
    parts = {
        f"Parts of gpt_cpu, replaced ({steps} steps)": (steps, KEPT),
        f"Parts that it does not have, added ({steps} steps)": (steps, base | LEFT_OUT),
        "Against memorising, in a run of 700 steps": (700, LONGER),
    }
    tables = []
    for title, (length, variants) in parts.items():
        own = [*shared, f"--trainer.max_steps={length}", f"--trainer.val_check_interval={length}"]
        flags = {name: [*own, *more] for name, more in variants.items()}
        result = compare(flags, len(SEEDS), FOLDER)
        tables.append(f"**{title}**\n\n{result.markdown()}")
    counted = with_counts(result.outcomes[next(iter(LONGER))])
    return "\n\n".join([*tables, f"**Counting, with 700 steps**\n\n{counted}"])


def main(args: Sequence[str] | None = None) -> None:
    """Run the ablation from the command line."""
    parser = argparse.ArgumentParser(prog="make ablation", description=__doc__)
    parser.add_argument("--steps", type=int, default=300, help="steps of each run (default: 300)")
    parser.add_argument("--readme", action="store_true", help="write tests/benchmarks/README.md")
    options = parser.parse_args(args)
    with exit_on_input_error("make ablation"):
        tables = run_all(options.steps)
    about = "The validation split is here a slice of the training text."
    publish("ablation", f"{about}\n\n{tables}", options.readme)


if __name__ == "__main__":
    main()
