"""Measure speed, and compare it with a checkout of nanoGPT: `make bench NANOGPT=PATH`.

The sides of a comparison take turns, three rounds by default; the tables give medians and ranges.
The tables are saved in runs/bench.md and the numbers in runs/bench.json. Parts that are not
measured again keep their earlier numbers.
"""

import argparse
import json
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from checkpoint_cost import checkpoints
from common import (
    QUICK,
    ROOT,
    TABLES,
    Figures,
    callback_seconds,
    fit,
    logged,
    median_and_range,
    publish,
    raw_loop,
    read_section,
    rounds,
    seconds,
    seconds_to,
    under_trainer,
)
from experiments import experiments
from growth import growth
from input_and_start import start, throughput
from nanogpt import NanoGPT
from playground_speed import playground
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from lit_gpt_scratch.cli.compare import machine
from lit_gpt_scratch.data.corpus import open_corpus
from lit_gpt_scratch.files import atomic_write
from lit_gpt_scratch.generation.sampling import SamplingSettings, generate
from lit_gpt_scratch.models.attention import FusedAttention
from lit_gpt_scratch.models.gpt import GPT
from lit_gpt_scratch.runs.comparison import markdown_table
from lit_gpt_scratch.training.hardware import fastest_precision, keep_freed_memory, measured_flops
from lit_gpt_scratch.training.optim import parameter_groups

SHAPE = {"context": 256, "layers": 4, "heads": 4, "width": 128}  # of the generation part
NANOGPT_CPU = ["--data.context=64", "--data.batch_size=12", "--model.net.attention.heads=4"]
THRESHOLDS = (1.886, 1.70, 1.6357)


def nanogpt_step(peer: NanoGPT, steps: int) -> float:
    """Return the median ms of a step of nanoGPT's train.py."""
    return 1000 * median(peer.train(steps)[10:])


def step(peer: NanoGPT | None, count: int) -> tuple[Figures, str]:
    """One step with nanoGPT's sizes for a CPU: 4 layers, width 128, context 64, batch 12, AdamW."""
    fp32, steps = "--trainer.precision=32-true", 200
    config, bf16 = "gpt_cpu_classic", f"--trainer.precision={fastest_precision()}"
    sides: dict[str, Callable[[], float]] = {
        "our raw loop, fp32": partial(raw_loop, config, steps, *NANOGPT_CPU, fp32),
        "ours under the Trainer, fp32": partial(under_trainer, config, steps, *NANOGPT_CPU, fp32),
        "ours under the Trainer, default": partial(
            under_trainer, config, steps, *NANOGPT_CPU, bf16
        ),
    }
    if peer:
        sides = {"nanoGPT's raw loop": partial(nanogpt_step, peer, steps), **sides}
    found = rounds(count, sides)
    base = median(found["nanoGPT's raw loop" if peer else "our raw loop, fp32"])
    table = [
        [name, median_and_range(ms), f"{12 * 64000 / median(ms):,.0f}", f"{median(ms) / base:.2f}"]
        for name, ms in found.items()
    ]
    return found, markdown_table([["step", "ms", "characters/s", "ratio"], *table])


def overhead(_peer: NanoGPT | None, count: int) -> tuple[Figures, str]:
    """Time that Lightning's Trainer adds to a step of a plain PyTorch loop."""
    found: Figures = {}
    table = []
    for config, steps in (("bigram", 1000), ("gpt_cpu", 150)):
        sides = rounds(
            count,
            {
                f"{config}, raw loop": partial(raw_loop, config, steps),
                f"{config}, Trainer": partial(under_trainer, config, steps),
            },
        )
        raw, trainer = (median(ms) for ms in sides.values())
        cells = [median_and_range(ms, 2) for ms in sides.values()]
        added = f"{trainer - raw:.2f} ms ({100 * (trainer / raw - 1):.1f} %)"
        table.append([config, *cells, added])
        found |= sides
    return found, markdown_table(
        [["config", "raw loop, ms", "under the Trainer, ms", "overhead"], *table]
    )


def callbacks(_peer: NanoGPT | None, count: int) -> tuple[Figures, str]:
    """Seconds that each callback takes in a run of gpt_cpu, with W&B offline."""
    found: Figures = {}
    for number in tqdm(range(count), desc="callbacks", leave=False):
        for name, spent in callback_seconds(
            "gpt_cpu", f"--seed_everything={1337 + number}"
        ).items():
            found.setdefault(name, []).append(spent)
    training = found.pop("training")
    together = [sum(spent) for spent in zip(*found.values(), strict=True)]
    table = [
        [name, median_and_range(spent, 2), f"{100 * median(spent) / median(training):.2f} %"]
        for name, spent in {**found, "together": together}.items()
    ]
    header = ["callback", "s", f"share of {median(training):.0f} s of training"]
    return found | {"training": training}, markdown_table([header, *table])


# Time to a loss


def time_to_loss(peer: NanoGPT | None, count: int) -> tuple[Figures, str]:
    """Seconds of training, without validation, until the exact validation loss reaches a value."""
    found: Figures = {}
    for number in tqdm(range(count), desc="time to loss", leave=False):
        seed = f"--seed_everything={1337 + number}"
        if peer:
            found.setdefault("nanoGPT's CPU recipe: seconds", []).append(sum(peer.train(2000)))
            found.setdefault("nanoGPT's CPU recipe: loss", []).append(peer.exact_validation())
        for config in ("gpt_cpu_short", "gpt_cpu"):
            cli = fit(config, seed, "--wandb.mode=disabled", "--trainer.val_check_interval=25")
            curve = logged(cli, "val/loss")
            for threshold in THRESHOLDS:
                first = seconds_to(threshold, curve)
                found.setdefault(f"{config}: seconds to {threshold}", []).append(first)
            found.setdefault(f"{config}: seconds", []).append(curve[-1][0])
            found.setdefault(f"{config}: loss", []).append(curve[-1][1])
    return found, loss_table(found)


def loss_table(found: Figures) -> str:
    """Return the table; its last column is nanoGPT's total seconds / seconds to reach 1.886."""
    header = ["recipe", *(f"s to {t}" for t in THRESHOLDS), "s in all", "loss at the last step"]
    nanogpt = found.get("nanoGPT's CPU recipe: seconds")
    table = []
    for name in dict.fromkeys(key.split(":")[0] for key in found):
        times = [found.get(f"{name}: seconds to {t}") for t in THRESHOLDS]
        cells = ["" if t is None or math.isnan(sum(t)) else median_and_range(t) for t in times]
        ends = median_and_range(found[f"{name}: seconds"])
        ratio = f"{median(nanogpt) / median(times[0]):.1f}" if nanogpt and times[0] else ""
        losses = median_and_range(found[f"{name}: loss"], 4)
        table.append([name, *cells, ends, losses, ratio])
    return markdown_table([[*header, "nanoGPT's s in all / s to 1.886"], *table])


# Generation


def generation(peer: NanoGPT | None, count: int) -> tuple[Figures, str]:
    """Generate a full context of 256 from one character: 4 layers, width 128, 4 heads, fp32."""
    attention = partial(FusedAttention, heads=SHAPE["heads"])
    sizes = {"layers": SHAPE["layers"], "width": SHAPE["width"]}
    net = GPT(65, SHAPE["context"], attention=attention, **sizes).eval()
    settings = SamplingSettings(max_new_tokens=SHAPE["context"] - 1)
    found: Figures = {}
    table = []
    for batch in (1, 64):
        prompt = torch.zeros(batch, 1, dtype=torch.long)
        work: dict[str, Callable[[], object]] = {
            "ours": partial(generate, net, prompt, SHAPE["context"], settings)
        }
        if peer:
            nanogpt = peer.net(**SHAPE)
            work = {"nanoGPT": partial(nanogpt.generate, prompt, SHAPE["context"] - 1), **work}
        chars = batch * (SHAPE["context"] - 1)
        times = rounds(count, {name: partial(seconds, do) for name, do in work.items()})
        speeds = {name: [chars / s for s in spent] for name, spent in times.items()}
        base = median(speeds[next(iter(work))])
        table += [
            [str(batch), name, median_and_range(v, 0), f"{median(v) / base:.1f}"]
            for name, v in speeds.items()
        ]
        found |= {f"batch {batch}: {name}": v for name, v in speeds.items()}
    return found, markdown_table([["batch", "", "characters/s", "ratio"], *table])


# Arithmetic


def arithmetic(_peer: NanoGPT | None, count: int) -> tuple[Figures, str]:
    """Floating-point operations of a step of gpt_cpu, compared with the peaks of this machine."""
    cli = fit("gpt_cpu", *QUICK, "--trainer.max_steps=1")
    model, data = cli.model.train(), cli.datamodule
    batch = data.read_windows(data.train_windows(0))
    optimizer = model.make_optimizer(params=parameter_groups(model.net))
    with FlopCounterMode(display=False) as network:
        logits = model.net(batch.inputs)
        F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()).backward()
    with FlopCounterMode(display=False) as update:
        optimizer.step()
    found = rounds(
        count,
        {
            "ms of a step": partial(raw_loop, "gpt_cpu", 100),
            "fp32 peak, GFLOP/s": lambda: measured_flops(torch.float32, 2048) / 1e9,
            "bf16 peak, GFLOP/s": lambda: measured_flops(torch.bfloat16, 2048) / 1e9,
        },
    )
    flops = [network.get_total_flops() / 1e9, update.get_total_flops() / 1e9]
    ms, fp32, bf16 = (median(v) for v in found.values())
    speed = 1000 * sum(flops) / ms
    table = [
        ["forward and backward", f"{flops[0]:.2f} GFLOP"],
        ["optimizer", f"{flops[1]:.2f} GFLOP"],
        ["step", f"{median_and_range(found['ms of a step'])} ms: {speed:.0f} GFLOP/s"],
        [
            "of the fp32 peak (most products are in bf16)",
            f"{100 * speed / fp32:.0f} % of {fp32:.0f} GFLOP/s",
        ],
        ["of the bf16 peak", f"{100 * speed / bf16:.0f} % of {bf16:.0f} GFLOP/s"],
    ]
    return found | {"GFLOP": flops}, markdown_table([["gpt_cpu", ""], *table])


PARTS = {
    part.__name__: part
    for part in (
        step,
        time_to_loss,
        generation,
        overhead,
        callbacks,
        arithmetic,
        growth,
        experiments,
        playground,
    )
} | {"input": throughput, "start": start, "checkpoints": checkpoints}


def parts(options: argparse.Namespace) -> Iterator[tuple[str, Figures, str]]:
    """Yield the name, numbers and table of each part that was asked for."""
    peer = None
    if options.nanogpt:
        peer = NanoGPT(options.nanogpt.resolve(), Path(open_corpus("tiny-shakespeare").path))
    for name in tqdm(options.only or PARTS, desc="bench", unit="part"):
        yield name, *PARTS[name](peer, options.rounds)


def combine(texts: dict[str, str], section: str) -> str:
    """Return the texts of all parts, in the order of PARTS.

    A part that is not in `texts` keeps its text in `section`: a part of the README may have been
    measured on another machine, whose runs/bench.json is not here.
    """
    _, *found = re.split(r"^\*\*(.+)\*\*: ", section, flags=re.MULTILINE)
    old = {
        title: f"**{title}**: {text.strip()}"
        for title, text in zip(found[::2], found[1::2], strict=True)
    }
    return "\n\n".join({**old, **texts}[t] for t in map(title_of, PARTS) if t in {**old, **texts})


def title_of(part: str) -> str:
    return part.replace("_", " ")


def main() -> None:
    """Run the benchmarks from the command line."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--nanogpt", type=Path, help="folder of a nanoGPT checkout")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts to run (default: all)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds of each comparison (default: 3)"
    )
    parser.add_argument("--readme", action="store_true", help="write tests/benchmarks/README.md")
    options = parser.parse_args()
    keep_freed_memory()
    results = ROOT / "runs" / "bench.json"
    saved: dict[str, Any] = (
        json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    )
    for name, figures, table in parts(options):
        measured_on = f"{machine()}, {options.rounds} rounds"
        saved[name] = {"figures": figures, "table": table, "machine": measured_on}
        with atomic_write(results) as file:
            file.write(json.dumps(saved, indent=1).encode())
    texts = {}
    for name, part in PARTS.items():
        if name in saved:
            about = f"{part.__doc__} {saved[name]['machine']}."
            texts[title_of(name)] = f"**{title_of(name)}**: {about}\n\n{saved[name]['table']}"
    section = read_section(TABLES, "bench") if options.readme else ""
    publish("bench", combine(texts, section), options.readme)


if __name__ == "__main__":
    main()
