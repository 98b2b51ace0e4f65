"""What happens beside the training step: throughput, progress, and what a validation leaves behind.

Files of a run's folder are written by the first process alone; W&B gets the same.

Shapes: T time, H heads.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unicodedata import category

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from lit_gpt_scratch.errors import write_errors_as_input_errors
from lit_gpt_scratch.generation.sampling import SamplingSettings
from lit_gpt_scratch.generation.text import default_prompt
from lit_gpt_scratch.inspection.draw_heads import draw_heads
from lit_gpt_scratch.inspection.explore import attention, visible
from lit_gpt_scratch.runs.tables import append_rows
from lit_gpt_scratch.runs.wandb_logger import wandb_run
from lit_gpt_scratch.training.progress import progress_line

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
        prompt, step = default_prompt(pl_module.tokenizer), trainer.global_step
        ids = pl_module.tokenizer.encode(prompt).repeat(self.count, 1).to(pl_module.device)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        texts = pl_module.generate(ids, replace(self.settings, seed=data.seed))
        rows = [(step, prompt, text) for text in texts]
        self.add(trainer, "samples", ["step", "prompt", "text"], rows)
        if bar := trainer.progress_bar_callback:
            bar.print("\n".join([progress_line(trainer), *quoted(texts[0])]))


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
        with write_errors_as_input_errors(path):
            path.parent.mkdir(exist_ok=True)
            picture.save(path)
        if run := wandb_run(trainer):
            import wandb

            image = wandb.Image(str(path), caption=visible(text))
            run.log({"attention": image}, step=trainer.global_step)
