"""Measure what each part of ModernGPT is worth, and which additions do not help: `make ablation`.

Every variant trains like gpt_cpu, with fewer steps. A tenth of the training split is held out, and
the variants are compared by the loss on it, so that they never see the validation split. Each
result is saved in runs/ablation.json when it arrives; finished runs are not repeated.
"""

import argparse
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from statistics import mean

import torch
from common import ROOT, SEEDS, fit, machine, markdown, mean_and_range, publish
from tqdm import tqdm

from lit_gpt_scratch.files import atomic_write
from lit_gpt_scratch.models.gpt import count_parameters

# Eight tenths of the corpus for training, one held out; the last is the validation split.
SLICE = ["--data.val_fraction=0.1", "--data.test_fraction=0.1"]
MUON, ADAMW = "lit_gpt_scratch.training.Muon", "lit_gpt_scratch.training.AdamW"
COSINE = "lit_gpt_scratch.training.WarmupCosine"
# The variants: a name, and the flags of `fit` that produce it. First, parts that gpt_cpu has.
KEPT: dict[str, list[str]] = {
    "as it is": ["--model.net=variants.Variant"],
    "AdamW (lr 0.004) instead of Muon": [f"--model.optimizer={ADAMW}"],
    "cosine decay to 2 % of the peak instead of plateau and line": [f"--model.schedule={COSINE}"],
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
    "weight decay 0.1": ["--model.optimizer.weight_decay=0.1"],
    "dropout 0.1": ["--model.net.dropout=0.1"],
    "weights averaged over about 20 steps": [
        "--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging",
        "--trainer.callbacks.decay=0.95",
    ],
}
VARIANTS = KEPT | LEFT_OUT
RESULTS = ROOT / "runs" / "ablation.json"
Result = tuple[float, int, float]


def run(flags: list[str], seed: int, steps: int) -> Result:
    """Train, and return the held-out loss, the parameter count and the seconds of training."""
    args = [f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}"]
    args += ["--name=ablation", "--wandb.mode=disabled", f"--seed_everything={seed}"]
    cli = fit("gpt_cpu", *args, *SLICE, *flags)
    metrics = cli.trainer.callback_metrics
    parameters = count_parameters(cli.model.net)
    return float(metrics["val/loss"]), parameters, float(metrics["train_seconds"])


def run_all(steps: int) -> dict[str, list[Result]]:
    """Train every variant with every seed, unless an earlier call has saved the result."""
    saved: dict[str, Result] = (
        json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    )
    jobs = {
        f"{name}, {steps} steps, {seed}": (flags, seed)
        for name, flags in VARIANTS.items()
        for seed in SEEDS
    }
    # In parallel with one thread each: the losses are the same, and it takes less time.
    with ProcessPoolExecutor(
        os.cpu_count(), get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        started = {
            pool.submit(run, *job, steps): key for key, job in jobs.items() if key not in saved
        }
        for done in tqdm(as_completed(started), "ablation", len(started), unit="run"):
            saved[started[done]] = done.result()
            with atomic_write(RESULTS) as file:
                file.write(json.dumps(saved, indent=1).encode())
    return {name: [saved[f"{name}, {steps} steps, {seed}"] for seed in SEEDS] for name in VARIANTS}


def main(args: Sequence[str] | None = None) -> None:
    """Run the ablation from the command line."""
    parser = argparse.ArgumentParser(prog="make ablation", description=__doc__)
    parser.add_argument("--steps", type=int, default=300, help="steps of each run (default: 300)")
    parser.add_argument("--readme", action="store_true", help="write tests/benchmarks/README.md")
    options = parser.parse_args(args)
    results = run_all(options.steps)
    base = mean(loss for loss, _, _ in results["as it is"])
    pace = mean(seconds for _, _, seconds in results["as it is"])
    rows = []
    for name, runs in results.items():
        losses, parameters, times = zip(*runs, strict=True)
        change = "" if name == "as it is" else f"{mean(losses) - base:+.4f}"
        cells = [name, mean_and_range(losses), change, f"{parameters[0]:,}"]
        verdict = "not in gpt_cpu: added here" if name in LEFT_OUT else "in gpt_cpu: replaced here"
        rows.append([*cells, f"{mean(times) / pace:.2f}", verdict * (name != "as it is")])
    header = ["what differs", "loss on the held-out slice", "change", "parameters", "time", "part"]
    about = f"{options.steps} steps, mean and range of the seeds {', '.join(map(str, SEEDS))}; time"
    about += f" of a step against the first line's, one thread each. {machine()}."
    publish("ablation", f"{markdown(header, rows)}\n\n{about}", options.readme)


if __name__ == "__main__":
    main()
