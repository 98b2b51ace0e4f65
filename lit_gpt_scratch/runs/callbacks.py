"""The callbacks of `fit`, and those among them that record a run in its folder and in W&B.

They record samples, losses of characters and attention images; only rank 0 writes.
"""

import math
import sys
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any
from unicodedata import category

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback

from lit_gpt_scratch.errors import InputError, describe_error, write_errors_as_input_errors
from lit_gpt_scratch.generation import SamplingSettings, default_prompt
from lit_gpt_scratch.inspection import LayerAttention, attention, draw_heads, visible
from lit_gpt_scratch.models.attention import shows_weights
from lit_gpt_scratch.runs.folder import append_rows, count_lines, last_checkpoint, validation_losses
from lit_gpt_scratch.runs.layers import LayerStatistics, start_of_validation
from lit_gpt_scratch.runs.loggers import find_wandb_run
from lit_gpt_scratch.training.callbacks import EarlyValidations
from lit_gpt_scratch.training.checkpointing import (
    RunCheckpoint,
    SignalCheckpoint,
    best_checkpoint,
)
from lit_gpt_scratch.training.distributed import RankConsistencyCheck
from lit_gpt_scratch.training.progress import progress_line
from lit_gpt_scratch.training.sharding import is_sharded
from lit_gpt_scratch.training.throughput import Throughput


class Recorder(Callback, ABC):
    """Base class: adds something to the run's folder and to W&B at each validation of `fit`.

    A subclass overrides `record`, which rank 0 calls, and `look` if it needs the network: all
    ranks call that if the weights are split between them. If one of them raises an error, the
    recorder prints a notice and stops recording; training continues.
    """

    is_costly = False  # record at validations 1 to 4, 8, 16, 32, ... and at the last step only

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.validations = 0  # of this run so far
        self._table: Any = None
        self._has_failed = False

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validations = int(state_dict["validations"])

    def look(self, trainer: Any, pl_module: Any) -> Any:
        """Return what the network does, for `record`."""

    @abstractmethod
    def record(self, trainer: Any, pl_module: Any, seen: Any) -> None:
        """Write to the folder and to W&B what `look` returned."""

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn != "fit":
            return
        self.validations += 1
        is_chosen = self.validations < 4 or self.validations.bit_count() == 1
        is_last = trainer.should_stop or trainer.global_step >= trainer.max_steps > 0
        is_due = is_chosen or is_last or not self.is_costly
        is_needed = trainer.is_global_zero or is_sharded(pl_module.net)
        if self._has_failed or not is_due or not is_needed:
            return
        try:
            seen = self.look(trainer, pl_module)
            if trainer.is_global_zero:
                self.record(trainer, pl_module, seen)
        except InputError:  # a full disk, for example
            raise
        except Exception as error:  # for example, a new attention may not return weights
            self._has_failed = True
            if trainer.is_global_zero:
                notice = f"Notice: {type(self).__name__} has failed ({describe_error(error)})."
                print(f"{notice} Training continues without it.", file=sys.stderr)
        if is_sharded(pl_module.net):  # all ranks stop together
            self._has_failed = trainer.strategy.reduce_boolean_decision(self._has_failed, all=False)

    def add_rows(self, trainer: Any, key: str, columns: list[str], rows: list[Any]) -> None:
        """Append rows to KEY.csv and to the W&B table KEY."""
        append_rows(self.folder / f"{key}.csv", columns, rows)
        if (run := find_wandb_run(trainer)) and run.experiment:
            import wandb

            self._table = self._table or wandb.Table(columns=[*columns], log_mode="INCREMENTAL")
            for row in rows:
                self._table.add_data(*row)
            run.log({key: self._table}, trainer.global_step)


class SampleRecorder(Recorder):
    """Writes samples to samples.csv and prints the first; prompt and seed are always the same."""

    is_costly = True
    settings = SamplingSettings(max_new_tokens=80, temperature=0.8)
    count = 2

    def look(self, trainer: Any, pl_module: Any) -> list[str]:
        prompt = pl_module.tokenizer.encode(default_prompt(pl_module.tokenizer))
        ids = prompt.repeat(self.count, 1).to(pl_module.device)
        texts: list[str] = pl_module.generate(
            ids, replace(self.settings, seed=trainer.datamodule.seed)
        )
        return texts

    def record(self, trainer: Any, pl_module: Any, texts: list[str]) -> None:
        prompt, step = default_prompt(pl_module.tokenizer), trainer.global_step
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
            ids = batch.targets if batch.counted is None else batch.targets[batch.counted]
            ids = ids.flatten().cpu()
            losses = outputs["losses"].flatten().cpu().double()  # MPS has no doubles
            self.sums[0].index_add_(0, ids, torch.ones_like(losses))
            self.sums[1].index_add_(0, ids, losses)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.world_size > 1:
            self.sums = trainer.strategy.reduce(self.sums.to(pl_module.device), reduce_op="sum")
        super().on_validation_end(trainer, pl_module)

    def record(self, trainer: Any, pl_module: Any, _: None) -> None:
        totals = zip(pl_module.tokenizer.alphabet, *self.sums.tolist(), strict=True)
        step = trainer.global_step
        rows = [(step, c, int(n), round(total / n, 6)) for c, n, total in totals if n]
        self.add_rows(trainer, "symbols", ["step", "symbol", "count", "loss"], rows)


class AttentionRecorder(Recorder):
    """Draws each head's attention to the start of the validation text: attention/step_N.png."""

    is_costly = True

    def look(self, trainer: Any, pl_module: Any) -> list[LayerAttention]:
        if not shows_weights(pl_module.net):
            return []
        return attention(pl_module, start_of_validation(trainer.datamodule))

    def record(self, trainer: Any, pl_module: Any, layers: list[LayerAttention]) -> None:
        if not layers:
            return
        text = start_of_validation(trainer.datamodule)
        image = draw_heads(layers, text, cell=max(9, 160 // len(text)))
        path = self.folder / "attention" / f"step_{trainer.global_step:06}.png"
        with write_errors_as_input_errors(path):
            path.parent.mkdir(exist_ok=True)
            image.save(path)
        if (run := find_wandb_run(trainer)) and run.experiment:
            import wandb

            picture = wandb.Image(str(path), caption=visible(text))
            run.log({"attention": picture}, trainer.global_step)


class WandbCheckpoints(Callback):
    """Saves the W&B run's id in each checkpoint; logs the best loss and the best checkpoint."""

    def __init__(self, folder: Path, wandb_id: str | None = None) -> None:
        self.folder = folder
        self.wandb_id = wandb_id  # of the resumed run; it is kept if W&B is now disabled

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        run = find_wandb_run(trainer)
        checkpoint["wandb_id"] = run.id if run else self.wandb_id

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Commit this step's row before the checkpoint: a resumed run does not log it again."""
        run = find_wandb_run(trainer)
        if run and trainer.state.fn == "fit":
            run.log({}, trainer.global_step, commit=True)
            before = validation_losses(self.folder)  # also those before a resume
            losses = [(loss, step) for step, loss in before.items()]
            now = float(trainer.callback_metrics["val/loss"]), trainer.global_step
            loss, step = min([*losses, now])
            run.summarize({"best val/loss": loss, "best step": step})

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        run, best = find_wandb_run(trainer), best_checkpoint(trainer)
        if run and run.experiment and best and Path(best.best_model_path).is_file():
            import wandb

            metrics = trainer.callback_metrics | {"best val/loss": best.best_model_score}
            values = {name: float(value) for name, value in metrics.items()}
            metadata = {name: value for name, value in values.items() if math.isfinite(value)}
            artifact = wandb.Artifact(f"checkpoint-{run.id}", "model", metadata=metadata)
            # Refer to the file in its place instead of copying it.
            artifact.add_file(best.best_model_path, policy="immutable", skip_cache=True)
            run.log_artifact(artifact, aliases=["best"])


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


def make_callbacks(
    folder: Path, progress: Callback | None, is_saving: bool, wandb_id: str | None = None
) -> list[Callback]:
    """Return the callbacks of a run. `progress` shows progress; without `is_saving`, none saves."""
    best = RunCheckpoint(folder / "checkpoints", "best", monitor="val/loss")
    last = RunCheckpoint(folder / "checkpoints", "last")
    return [
        RankConsistencyCheck(),
        SampleRecorder(folder),
        SymbolLossRecorder(folder),
        AttentionRecorder(folder),
        WandbCheckpoints(folder, wandb_id),
        RowCounts(folder),
        SignalCheckpoint(last_checkpoint(folder) if is_saving else None),
        Throughput(),
        LayerStatistics(),
        EarlyValidations(),
        *([progress] if progress else []),
        *([best, last] if is_saving else []),
    ]
