"""The callbacks of `fit`. Their order matters: tests/runs/test_callbacks.py gives the reasons."""

import sys
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lit_gpt_scratch.runs.folder import last_checkpoint
from lit_gpt_scratch.runs.metrics_logger import RowCounts
from lit_gpt_scratch.runs.recorders import AttentionRecorder, SampleRecorder, SymbolLossRecorder
from lit_gpt_scratch.runs.wandb_logger import WandbCheckpoints
from lit_gpt_scratch.training.checkpointing import SignalCheckpoint
from lit_gpt_scratch.training.distributed import RankConsistencyCheck
from lit_gpt_scratch.training.progress import LogLines, ProgressBar
from lit_gpt_scratch.training.throughput import Throughput


def make_callbacks(folder: Path, bar: bool | None, wandb_id: str | None = None) -> list[Callback]:
    """Return the callbacks of a run: checks, recorders, checkpoints, throughput and progress.

    Args:
        folder: The run's folder.
        bar: Whether to show a progress bar; by default, if the output is a terminal.
        wandb_id: Id of the W&B run that this run resumes.
    """
    options: dict[str, Any] = {
        "dirpath": folder / "checkpoints",
        "auto_insert_metric_name": False,
        "enable_version_counter": False,
        "save_on_train_epoch_end": False,
    }
    return [
        RankConsistencyCheck(),
        SampleRecorder(folder),
        SymbolLossRecorder(folder),
        AttentionRecorder(folder),
        WandbCheckpoints(wandb_id),
        RowCounts(folder),
        SignalCheckpoint(last_checkpoint(folder)),
        Throughput(),
        ProgressBar() if (sys.stdout.isatty() if bar is None else bar) else LogLines(),
        ModelCheckpoint(filename="best", monitor="val/loss", **options),
        ModelCheckpoint(filename="last", monitor=None, **options),
    ]
