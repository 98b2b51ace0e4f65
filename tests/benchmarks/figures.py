"""Draw the README's pictures from real runs: `make figures`.

The curves and samples show the newest run of each rung, which `make ladder` trains. For the
animation, a small GPT is trained again and its attention is recorded during training.
"""

import argparse
import base64
import io
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import CHROMIUM, ROOT, TOY, Chromium, Page, fit, until
from ladder import REFERENCE
from lightning.pytorch.callbacks import Callback
from matplotlib import pyplot as plt
from PIL import Image
from tqdm import tqdm

from lit_gpt_scratch.cli.playground_command import write_playground
from lit_gpt_scratch.errors import InputError, exit_on_input_error
from lit_gpt_scratch.files import atomic_write
from lit_gpt_scratch.inspection.hooks import LayerAttention, attention
from lit_gpt_scratch.inspection.plots import plot_attention
from lit_gpt_scratch.runs.reading import Run, read_run
from lit_gpt_scratch.runs.report import REFERENCES

FIGURES = ROOT / "notebooks" / "figures"
RUNGS = [rung for rung in REFERENCE if rung != "gpt"]  # gpt needs a GPU
SENTENCE = "Long live the king, my lord!"
STEPS = (0, 2, 5, 10, 20, 30, 45, 60, 80, 100, 130, 160, 200, 250, 300, 400, 500, 650, 800)
STEPS = (*STEPS, 1000, 1300, 1600, 2000)


def newest(rung: str) -> Run:
    """Read the newest run of a rung that has a validation loss and samples.

    Raises:
        InputError: There is no such run.
    """
    folders = (ROOT / "runs" / rung).glob("version_*")
    for folder in sorted(folders, key=lambda path: int(path.name[8:]), reverse=True):
        run = read_run(folder, rung)
        if "val/loss" in run.val and run.samples:
            return run
    raise InputError(f"there is no run of {rung}: train all rungs with `make ladder`.")


def save(figure: Any, name: str) -> None:
    """Save a figure as a PNG of 64 colours, which makes a small file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    plt.close(figure)
    with atomic_write(FIGURES / name) as file:
        Image.open(buffer).convert("RGB").quantize(64).save(file, "PNG", optimize=True)


def draw_ladder(runs: dict[str, Run]) -> None:
    """Draw the validation loss of every rung by steps, with the reference's, and by seconds."""
    figure, (by_step, by_time) = plt.subplots(
        1, 2, figsize=(11, 4.4), layout="constrained", sharey=True
    )
    for i, (rung, run) in enumerate(runs.items()):
        colour, loss = plt.cm.viridis(i / len(runs)), run.val["val/loss"]
        by_time.plot(run.val["train_seconds"], loss, ".-", color=colour, label=rung)
        if rung.startswith("gpt"):
            continue
        by_step.plot(run.val["step"], loss, ".-", color=colour)
        _, _, reference = REFERENCE[rung].partition(" / ")  # of validation
        if reference:
            by_step.plot(4800, float(reference), "D", mfc="none", color=colour, ms=8)
    by_step.plot([], [], "D", mfc="none", color="black", ms=8, label="the reference, at its end")
    by_step.legend(frameon=False)
    for name in ("nanoGPT on a CPU", "reference, GPT", "nanoGPT on a GPU"):
        by_time.axhline(REFERENCES[name], color="gray", lw=0.8, ls="--")
        by_time.annotate(
            name, (0.01, REFERENCES[name]), xycoords=("axes fraction", "data"), color="gray",
            xytext=(0, 2), textcoords="offset points", fontsize=8,
        )  # fmt: skip
    loss = "validation loss, nats per character"
    by_step.set(title="small rungs, by steps", xlabel="optimizer steps", ylabel=loss)
    by_time.set(title="all rungs, by time", xlabel="seconds of training on two cores")
    # The first validations are log-spaced, so that the fall of the loss can be seen.
    for axes, ticks in {by_step: (1, 10, 100, 1000, 5000), by_time: (0.1, 1, 10, 100)}.items():
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.xaxis.minorticks_off()
    figure.legend(*by_time.get_legend_handles_labels(), loc="outside right", frameon=False)
    save(figure, "ladder.png")


def draw_samples(runs: dict[str, Run]) -> None:
    """Draw the beginning of the last sample of each rung."""
    figure, axes = plt.subplots(figsize=(9, 0.78 * len(runs)), layout="constrained")
    axes.set(xlim=(0, 1), ylim=(len(runs), 0))
    axes.axis("off")
    for row, (rung, run) in enumerate(runs.items()):
        _, ((_, text), *_) = run.samples[-1]
        loss = run.val["val/loss"][-1]
        lines = textwrap.wrap(" ⏎ ".join(text.split("\n")).strip(" ⏎"), 76)[:2]
        axes.text(0, row + 0.5, f"{rung}\n{loss:.3f} nats", va="center", weight="bold")
        axes.text(0.2, row + 0.5, "\n".join(lines), va="center", family="monospace", size=9)
        axes.axhline(row + 1, color="0.85", lw=0.8)
    save(figure, "samples.png")


class AttentionFrames(Callback):
    """Record the attention weights in SENTENCE at each step of STEPS."""

    def __init__(self) -> None:
        self.frames: dict[int, list[LayerAttention]] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step in STEPS:
            self.frames[trainer.global_step] = attention(pl_module, SENTENCE)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.frames[trainer.global_step] = attention(pl_module, SENTENCE)


def draw_attention() -> None:
    """Draw the animation: the weights of three heads before, during and after training."""
    flags = ["--name=figures", "--trainer.callbacks+=figures.AttentionFrames"]
    cli = fit("gpt_cpu_classic", *TOY, *flags)
    [recorder] = (c for c in cli.trainer.callbacks if type(c).__name__ == "AttentionFrames")
    recorded = recorder.frames  # type: ignore[attr-defined]
    _, *_, end = recorded.values()
    heads = [(i, head) for i, layer in enumerate(end) for head in range(len(layer.weights))]
    # Choose the heads with the sharpest attention after training, one for each layer.
    sharpness = {at: float(end[at[0]].weights[at[1]].amax(-1).mean()) for at in heads}
    best = {i: max((at for at in heads if at[0] == i), key=sharpness.__getitem__) for i, _ in heads}
    chosen = sorted(sorted(best.values(), key=sharpness.__getitem__)[-3:])
    frames = []
    for step, layers in tqdm(recorded.items(), desc="attention", unit="frame"):
        figure, grid = plt.subplots(1, 3, figsize=(13, 4.8), layout="constrained")
        for axes, (layer, head) in zip(grid, chosen, strict=True):
            plot_attention(layers[layer].weights[head], SENTENCE, axes)
            axes.tick_params(labelsize=8)
            axes.set_title(f"layer {layer}, head {head}")
        title = f"after {step:,} steps" if step else "before training: averages of the past"
        figure.suptitle(title, fontsize=15)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=75)
        plt.close(figure)
        frames.append(Image.open(buffer).convert("RGB"))
    mixed = Image.new("RGB", frames[0].size)
    # One palette must fit all frames, so it is made from parts of several.
    for i, frame in enumerate(frames[:: len(frames) // 4]):
        part = (0, i * frame.height // 5, frame.width, (i + 1) * frame.height // 5)
        mixed.paste(frame.crop(part), part)
    palette = mixed.quantize(64)
    first, *others = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [1500, *[300] * (len(others) - 1), 3000]  # ms
    with atomic_write(FIGURES / "attention.gif") as file:
        first.save(
            file, "GIF", save_all=True, append_images=others, duration=durations, loop=0,
            optimize=True,
        )  # fmt: skip


def draw_playground() -> None:
    """Take a picture of the playground of all rungs in headless Chromium."""
    runs = [str(newest(rung).folder) for rung in RUNGS]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "playground.html"
        write_playground(runs, file, text="The king is dead;\nlong live the king!\n")
        browser = Chromium(Path(folder) / "profile")
        page = Page(browser, file)
        page.evaluate(until("answers.ladder && answers.heads"))
        page.evaluate("choose(32); new Promise(f => setTimeout(f, 1000))")
        shot = page.call("Page.captureScreenshot", format="png")["data"]
        browser.close()
    image = Image.open(io.BytesIO(base64.b64decode(shot)))
    with atomic_write(FIGURES / "playground.png") as saved:
        image.convert("RGB").quantize(256).save(saved, "PNG", optimize=True)


def main(args: Sequence[str] | None = None) -> None:
    """Draw the pictures from the command line."""
    parser = argparse.ArgumentParser(prog="make figures", description=__doc__)
    parser.parse_args(args)
    torch.manual_seed(1337)
    FIGURES.mkdir(exist_ok=True)
    with exit_on_input_error("make figures"):
        if not CHROMIUM:
            raise InputError("the picture of the playground needs Chromium: install it.")
        runs = {rung: newest(rung) for rung in RUNGS}
    draw_ladder(runs)
    draw_samples(runs)
    draw_attention()
    draw_playground()
    for path in sorted(FIGURES.iterdir()):
        print(f"{Path(path).relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
