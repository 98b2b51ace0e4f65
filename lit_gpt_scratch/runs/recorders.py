"""Records a run in its folder: metrics.csv, samples, losses of characters, attention images.

Only rank 0 writes the files. W&B gets the same data.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unicodedata import category

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from lit_gpt_scratch.errors import write_errors_as_input_errors
from lit_gpt_scratch.generation import SamplingSettings, default_prompt
from lit_gpt_scratch.inspection import attention, visible
from lit_gpt_scratch.inspection.draw_heads import draw_heads
from lit_gpt_scratch.runs.tables import append_rows, count_lines, read_rows, write_rows
from lit_gpt_scratch.runs.wandb_logger import get_wandb_run
from lit_gpt_scratch.training.progress import progress_line


class MetricsCSV(Logger):
    """Appends one row to metrics.csv for each log call; a new column is added to all rows.

    Lightning's CSVLogger would delete the file of a run that resumes.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self._columns, _ = read_rows(self.path)

    @property
    def name(self) -> str:
        return self.path.parents[1].name

    @property
    def version(self) -> str:
        return self.path.parent.name

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Do nothing: the run's config.yaml has the hyperparameters."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {"step": step, **metrics}
        if new := [key for key in row if key not in self._columns]:
            self._columns += new
            write_rows(self.path, self._columns, read_rows(self.path)[1])
        append_rows(self.path, self._columns, [[row.get(key, "") for key in self._columns]])


class Recorder(Callback):
    """Base class: adds something to the run's folder and to W&B at each validation of `fit`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._table: Any = None

    def add_rows(self, trainer: Any, key: str, columns: list[str], rows: list[Any]) -> None:
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
    return [
        "  | " + "".join("�" if category(c) == "Cc" and c != "\t" else c for c in line)
        for line in text.strip().splitlines()
    ]


class SymbolLossRecorder(Recorder):
    """Writes the validation loss of each character of the alphabet to symbols.csv."""

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        # Row 0 has counts, row 1 has sums of losses.
        self.sums = torch.zeros(2, len(pl_module.tokenizer), dtype=torch.float64)

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
    """Draws each head's attention to the start of the validation text: attention/step_N.png."""

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

            picture = wandb.Image(str(path), caption=visible(text))
            run.log({"attention": picture}, step=trainer.global_step)


class RowCounts(Callback):
    """Saves the length of each table in the checkpoint; reports lost rows when a run resumes."""

    state_key = "Saver"  # part of the checkpoint format

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def state_dict(self) -> dict[str, Any]:
        return {"lines": count_lines(self.folder)}

    @rank_zero_only
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        counts, saved = count_lines(self.folder), state_dict["lines"]
        lost = [name for name, count in saved.items() if counts.get(name, 0) < count]
        if lost and (self.folder / "checkpoints").exists():  # a new folder starts without rows
            print(
                f"Notice: {', '.join(lost)} lacks rows that existed when the checkpoint was saved. "
                "Training continues; the lost rows stay missing.",
                file=sys.stderr,
            )
