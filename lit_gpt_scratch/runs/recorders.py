"""Callbacks that record each validation: samples, the loss of each character, attention images.

Only rank 0 writes the files in the run's folder. W&B gets the same data.

Shapes: T time, H heads.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unicodedata import category

import torch
from lightning.pytorch.callbacks import Callback

from lit_gpt_scratch.errors import write_errors_as_input_errors
from lit_gpt_scratch.generation.sampling import SamplingSettings
from lit_gpt_scratch.generation.text import default_prompt
from lit_gpt_scratch.inspection.draw_heads import draw_heads
from lit_gpt_scratch.inspection.hooks import attention
from lit_gpt_scratch.inspection.visible import visible
from lit_gpt_scratch.runs.tables import append_rows
from lit_gpt_scratch.runs.wandb_logger import get_wandb_run
from lit_gpt_scratch.training.progress import progress_line


class Recorder(Callback):
    """Base class: adds something to the run's folder and to W&B at each validation of `fit`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._table: Any = None

    def add_rows(
        self, trainer: Any, key: str, columns: list[str], rows: Sequence[Sequence[object]]
    ) -> None:
        """Append rows to KEY.csv and to the W&B table KEY."""
        append_rows(self.folder / f"{key}.csv", columns, rows)
        if run := get_wandb_run(trainer):
            import wandb

            self._table = self._table or wandb.Table(columns=[*columns], log_mode="INCREMENTAL")
            for row in rows:
                self._table.add_data(*row)
            run.log({key: self._table}, step=trainer.global_step)


class SampleRecorder(Recorder):
    """Writes samples to samples.csv and prints the first; prompt and seed are always the same."""

    settings = SamplingSettings(max_new_tokens=100, temperature=0.8)
    count = 2

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        prompt, step = default_prompt(pl_module.tokenizer), trainer.global_step
        ids = pl_module.tokenizer.encode(prompt).repeat(self.count, 1).to(pl_module.device)
        texts = pl_module.generate(ids, replace(self.settings, seed=trainer.datamodule.seed))
        rows = [(step, prompt, text) for text in texts]
        self.add_rows(trainer, "samples", ["step", "prompt", "text"], rows)
        if bar := trainer.progress_bar_callback:
            bar.print("\n".join([progress_line(trainer), *printable_lines(texts[0])]))


def printable_lines(text: str) -> list[str]:
    """Return the lines of a text, each after a `|`, without control characters."""
    return ["  | " + "".join(map(_printable, line)) for line in text.strip().splitlines()]


def _printable(character: str) -> str:
    return "�" if category(character) == "Cc" and character != "\t" else character


class SymbolLossRecorder(Recorder):
    """Writes the validation loss of each character of the alphabet to symbols.csv."""

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        size = len(pl_module.tokenizer)
        self.sums = torch.zeros(2, size, dtype=torch.float64)  # counts, then losses

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        if batch.split == "val":
            ids = batch.targets.flatten().cpu()
            losses = outputs["losses"].flatten().double().cpu()
            self.sums[0].index_add_(0, ids, torch.ones_like(losses))
            self.sums[1].index_add_(0, ids, losses)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        sums = self.sums
        if trainer.world_size > 1:
            sums = trainer.strategy.reduce(sums.to(pl_module.device), reduce_op="sum")
        if trainer.is_global_zero:
            totals = zip(pl_module.tokenizer.alphabet, *sums.tolist(), strict=True)
            step = trainer.global_step
            rows = [(step, c, int(n), round(total / n, 6)) for c, n, total in totals if n]
            self.add_rows(trainer, "symbols", ["step", "symbol", "count", "loss"], rows)


class AttentionRecorder(Recorder):
    """Draws every head's weights (H, T, T) on the start of validation: attention/step_N.png."""

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        has_weights = any(hasattr(module, "weights") for module in pl_module.net.modules())
        if not has_weights or not trainer.is_global_zero:
            return
        data = trainer.datamodule
        start = data.splits.val.start
        text = data.tokenizer.decode(data.tokens[start : start + min(32, data.context)].cpu())
        image = draw_heads(attention(pl_module, text), text)
        path = self.folder / "attention" / f"step_{trainer.global_step:06}.png"
        with write_errors_as_input_errors(path):
            path.parent.mkdir(exist_ok=True)
            image.save(path)
        if run := get_wandb_run(trainer):
            import wandb

            media = wandb.Image(str(path), caption=visible(text))
            run.log({"attention": media}, step=trainer.global_step)
