"""What happens beside the training step: throughput, progress, and what a validation leaves behind.

Files of a run's folder are written by the first process alone; W&B gets the same.

Shapes: T time, H heads.
"""

import math
import sys
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unicodedata import category

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.throughput import get_available_flops, measure_flops
from lightning.pytorch.callbacks import Callback, TQDMProgressBar

from lit_gpt_scratch.errors import writing
from lit_gpt_scratch.explore import LayerAttention, attention, visible
from lit_gpt_scratch.machine import measured_flops
from lit_gpt_scratch.recording import wandb_run
from lit_gpt_scratch.sampling import SamplingSettings
from lit_gpt_scratch.tables import append_rows


class Throughput(Callback):
    """Logs `chars_per_sec`, `mfu`, `tokens_seen`, `train_seconds`, all without validation's time.

    `mfu`, model-FLOP utilisation, is the floating-point operations that the network's passes need,
    over those that the device can do (Chowdhery et al. 2022, appendix B): as its maker says, or, on
    a CPU, as a matrix product takes.

    Attributes:
        train_seconds: Of all steps so far, without validation.
    """

    def __init__(self) -> None:
        self.train_seconds = 0.0
        self._since = 0.0
        self._logged_step, self._logged_seconds = 0, 0.0
        self._flops_per_step, self._flops_per_sec = 0, 0.0

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Count on the meta device, where nothing is computed, and before anything is compiled."""
        device = trainer.strategy.root_device
        dtype = torch.bfloat16 if "bf16" in str(trainer.precision) else torch.float32
        net = deepcopy(pl_module.net).to("meta").train()
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        ids = torch.zeros(data.batch_size, data.context, dtype=torch.long, device="meta")
        try:
            passes = measure_flops(net, lambda: net(ids), torch.Tensor.sum)
        except (NotImplementedError, RuntimeError) as error:  # it must see real numbers
            passes = 0
            if trainer.is_global_zero:
                print(f"Notice: mfu is not logged, for want of a count ({error}).", file=sys.stderr)
        each: float | None = None
        if device.type == "cuda":
            each = get_available_flops(device, dtype)
        elif device.type == "cpu":
            each = measured_flops(dtype)
        self._flops_per_step = passes * trainer.accumulate_grad_batches
        self._flops_per_sec = (each or 0.0) * trainer.world_size

    def state_dict(self) -> dict[str, Any]:
        seconds = self.train_seconds, self._logged_seconds
        return {"seconds": [*seconds], "logged_step": self._logged_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.train_seconds, self._logged_seconds = map(float, state_dict["seconds"])
        self._logged_step = int(state_dict["logged_step"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._logged_step or not pl_module.logs_after(step):
            return
        self._pause()
        seconds = self.train_seconds - self._logged_seconds
        steps = step - self._logged_step
        chars = self._chars_per_step(trainer)
        pl_module.log("chars_per_sec", steps * chars / seconds)
        if self._flops_per_step and self._flops_per_sec:
            achieved = steps * self._flops_per_step / seconds
            pl_module.log("mfu", achieved / self._flops_per_sec)
        pl_module.log("tokens_seen", float(step * chars))
        pl_module.log("train_seconds", self.train_seconds)
        self._logged_step, self._logged_seconds = step, self.train_seconds

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._since:
            self._pause()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._since:
            pl_module.log("tokens_seen", float(trainer.global_step * self._chars_per_step(trainer)))
            pl_module.log("train_seconds", self.train_seconds)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.perf_counter() if self._since else 0.0

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._pause()
        self._since = 0.0

    def _pause(self) -> None:
        """Add what has passed since the last pause."""
        now = time.perf_counter()
        self.train_seconds += now - self._since
        self._since = now

    @staticmethod
    def _chars_per_step(trainer: pl.Trainer) -> int:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        return int(data.batch_size * data.context * trainer.accumulate_grad_batches)


class ProgressBar(TQDMProgressBar):
    """Lightning's bar with the run's steps as its length; refreshed sparsely, since that costs."""

    shown = ("train/loss", "val/loss", "val/bpc", "chars_per_sec")

    def __init__(self) -> None:
        super().__init__(refresh_rate=20)

    @property
    def total_train_batches(self) -> int | float:
        trainer = self.trainer
        return trainer.max_steps * trainer.accumulate_grad_batches if trainer.max_steps > 0 else 0

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description("Training")

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
        found = trainer.callback_metrics
        values = {name: float(found[name]) for name in self.shown if name in found}
        speed = values.pop("chars_per_sec", None)
        shown = {name: f"{value:.3f}" for name, value in values.items()}
        return shown | ({"chars/s": f"{speed:,.0f}"} if speed else {})


class LogLines(Callback):
    """A line at each validation, in place of the bar where nobody watches: a log file, or CI."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            print(progress(trainer), file=sys.stderr)


def progress(trainer: pl.Trainer) -> str:
    """Where a run is, in a line."""
    loss = float(trainer.callback_metrics["val/loss"])
    done = f"step {trainer.global_step:>6,} of {trainer.max_steps:,}"
    return f"{done}: val/loss {loss:.4f}, {loss / math.log(2):.3f} bits per character"


# What each validation leaves behind, as files and in W&B


class Record(Callback):
    """Something that each validation of a `fit` adds to the run's folder and to W&B."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._table: Any = None

    def add(
        self, trainer: pl.Trainer, key: str, header: list[str], rows: Sequence[Sequence[object]]
    ) -> None:
        """Rows of a table, to KEY.csv and to W&B's table KEY, which grows."""
        append_rows(self.folder / f"{key}.csv", header, rows)
        if run := wandb_run(trainer):
            import wandb

            self._table = self._table or wandb.Table(columns=[*header], log_mode="INCREMENTAL")
            for row in rows:
                self._table.add_data(*row)
            run.log({key: self._table}, step=trainer.global_step)


class Samples(Record):
    """Texts of one prompt, always with the same draws: samples.csv, and above the progress bar."""

    settings = SamplingSettings(max_new_tokens=100, temperature=0.8)
    count = 2

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        prompt, step = pl_module.default_prompt, trainer.global_step
        ids = pl_module.tokenizer.encode(prompt).repeat(self.count, 1).to(pl_module.device)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        texts = pl_module.generate(ids, replace(self.settings, seed=data.seed))
        rows = [(step, prompt, text) for text in texts]
        self.add(trainer, "samples", ["step", "prompt", "text"], rows)
        if bar := trainer.progress_bar_callback:
            bar.print("\n".join([progress(trainer), *quoted(texts[0])]))


def quoted(text: str) -> list[str]:
    """The lines of a text, set off from what stands around it, and harmless to a terminal."""
    lines = text.strip().splitlines()
    return ["  | " + "".join(map(_harmless, line)) for line in lines]


def _harmless(character: str) -> str:
    return "�" if category(character) == "Cc" and character != "\t" else character


class SymbolLosses(Record):
    """The validation loss of each character of the alphabet: symbols.csv."""

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        size = len(pl_module.tokenizer)
        self.sums = torch.zeros(2, size, dtype=torch.float64)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        if batch.split == "val":
            ids = batch.targets.flatten().cpu()
            losses = outputs["losses"].flatten().double().cpu()
            self.sums[0].index_add_(0, ids, torch.ones_like(losses))
            self.sums[1].index_add_(0, ids, losses)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        sums: Any = self.sums
        if trainer.world_size > 1:
            sums = trainer.strategy.reduce(sums.to(pl_module.device), reduce_op="sum")
        if trainer.is_global_zero:
            counts, losses = sums.tolist()
            seen = zip(pl_module.tokenizer.alphabet, counts, losses, strict=True)
            step = trainer.global_step
            rows = [(step, c, int(n), round(total / n, 6)) for c, n, total in seen if n]
            self.add(trainer, "symbols", ["step", "symbol", "count", "loss"], rows)


class AttentionPictures(Record):
    """What every head reads in one text, the start of validation's: attention/step_N.png."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        looks = any(hasattr(module, "weights") for module in pl_module.net.modules())
        if not looks or not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        start = data.splits.val.start
        text = data.tokenizer.decode(data.tokens[start : start + min(32, data.context)].cpu())
        picture = draw_heads(attention(pl_module, text), text)
        path = self.folder / "attention" / f"step_{trainer.global_step:06}.png"
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            picture.save(path)
        if run := wandb_run(trainer):
            import wandb

            image = wandb.Image(str(path), caption=visible(text))
            run.log({"attention": image}, step=trainer.global_step)


def draw_heads(layers: Sequence[LayerAttention], text: str, cell: int = 9) -> Any:
    """A grid of all heads' weights, a row for each layer, as a PIL image.

    As `plots.plot_heads` draws it: darker is more, on a square-root scale; grey is what is to come.
    Without matplotlib, which would take ten times as long, at every validation.

    Args:
        layers: Weights (H, T, T) each: row reads column.
        text: T characters, written along the sides.
        cell: Pixels of a weight.
    """
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    # Pillow's own font lacks the signs for what is invisible; matplotlib's is found without it.
    found = find_spec("matplotlib")
    assert found
    assert found.origin
    font_file = Path(found.origin).parent / "mpl-data/fonts/ttf/DejaVuSansMono.ttf"
    font = ImageFont.truetype(font_file, cell + 1)
    left, top, gap = 2 * cell, 4 * cell, 2 * cell
    side = cell * len(text)
    wide, high = left + side + gap, top + side + gap
    heads = max(weights.size(0) for _, weights in layers)
    picture = Image.new("RGB", (heads * wide + gap, len(layers) * high), "white")
    pen = ImageDraw.Draw(picture)
    future = Image.fromarray(255 * torch.ones(len(text), len(text)).triu(1).byte().numpy())
    for row, (name, weights) in enumerate(layers):
        for head, seen in enumerate(weights):
            x, y = head * wide + gap, row * high
            pen.text((x + left, y + cell // 2), f"{name}, head {head}", "black", font)
            grey = Image.fromarray((255 * seen.float().cpu().clamp(0, 1).sqrt()).byte().numpy())
            drawn = ImageOps.colorize(grey, "#f7fbff", "#08306b", "#6baed6")
            drawn.paste("#e0e0e0", mask=future)
            drawn = drawn.resize((side, side), Image.Resampling.NEAREST)
            picture.paste(drawn, (x + left, y + top))
            for i, character in enumerate(visible(text)):
                middle = i * cell + cell // 2
                pen.text((x + left + middle, y + top - cell), character, "black", font, "mm")
                pen.text((x + left // 2, y + top + middle), character, "black", font, "mm")
    return picture.quantize(64, Image.Quantize.FASTOCTREE)
