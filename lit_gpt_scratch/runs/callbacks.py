"""The callbacks of `fit`. Their order matters: tests/runs/test_callbacks.py gives the reasons."""

import sys
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lit_gpt_scratch.runs import recorders
from lit_gpt_scratch.runs.folder import last_checkpoint
from lit_gpt_scratch.runs.wandb_logger import WandbCheckpoints
from lit_gpt_scratch.training.checkpointing import SignalCheckpoint
from lit_gpt_scratch.training.distributed import RankConsistencyCheck
from lit_gpt_scratch.training.progress import LogLines, ProgressBar
from lit_gpt_scratch.training.throughput import Throughput


def make_callbacks(folder: Path, bar: bool | None, wandb_id: str | None = None) -> list[Callback]:
    """Return the callbacks of a run. If `bar` is None, only a terminal gets a progress bar."""
    if bar is None:
        bar = sys.stdout.isatty()
    options: dict[str, Any] = {
        "dirpath": folder / "checkpoints",
        "auto_insert_metric_name": False,
        "enable_version_counter": False,
        "save_on_train_epoch_end": False,
    }
    return [
        RankConsistencyCheck(),
        recorders.SampleRecorder(folder),
        recorders.SymbolLossRecorder(folder),
        recorders.AttentionRecorder(folder),
        WandbCheckpoints(wandb_id),
        recorders.RowCounts(folder),
        SignalCheckpoint(last_checkpoint(folder)),
        Throughput(),
        ProgressBar() if bar else LogLines(),
        ModelCheckpoint(filename="best", monitor="val/loss", **options),
        ModelCheckpoint(filename="last", monitor=None, **options),
    ]
