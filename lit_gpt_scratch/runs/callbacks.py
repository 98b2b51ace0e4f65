"""The callbacks of every `fit`. Their order matters."""

import sys
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lit_gpt_scratch.runs.folder import last_checkpoint
from lit_gpt_scratch.runs.metrics_logger import RowCounts
from lit_gpt_scratch.runs.recorders import AttentionPictures, Samples, SymbolLosses
from lit_gpt_scratch.runs.wandb_logger import WandbRun
from lit_gpt_scratch.training.checkpointing import SignalCheckpoint
from lit_gpt_scratch.training.distributed import RankConsistencyCheck
from lit_gpt_scratch.training.progress import LogLines, ProgressBar
from lit_gpt_scratch.training.throughput import Throughput


def make_callbacks(folder: Path, bar: bool | None, wandb_id: str | None = None) -> list[Callback]:
    """What every `fit` has: checkpoints, throughput, bar, and what validations leave behind.

    Args:
        folder: The run's.
        bar: Whether to show the bar; None: on a terminal.
        wandb_id: That of the run which this one resumes.
    """
    kept: dict[str, Any] = {
        "dirpath": folder / "checkpoints",
        "auto_insert_metric_name": False,
        "enable_version_counter": False,
        "save_on_train_epoch_end": False,
    }
    return [
        RankConsistencyCheck(),
        Samples(folder),
        SymbolLosses(folder),
        AttentionPictures(folder),
        WandbRun(wandb_id),
        RowCounts(folder),
        SignalCheckpoint(last_checkpoint(folder)),
        Throughput(),  # after these, so that its clock of training leaves them out
        ProgressBar() if (sys.stdout.isatty() if bar is None else bar) else LogLines(),
        ModelCheckpoint(filename="best", monitor="val/loss", **kept),
        ModelCheckpoint(filename="last", monitor=None, **kept),
    ]
