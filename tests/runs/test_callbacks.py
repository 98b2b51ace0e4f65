"""The order of a run's callbacks: Lightning calls every hook in the order of this list."""

from pathlib import Path
from typing import Any

import pytest
import torch
from laws import train_small

from lit_gpt_scratch.runs.callbacks import (
    AttentionRecorder,
    RowCounts,
    SampleRecorder,
    SymbolLossRecorder,
    WandbCheckpoints,
    make_callbacks,
)
from lit_gpt_scratch.runs.layers import LayerStatistics
from lit_gpt_scratch.training.callbacks import EarlyValidations
from lit_gpt_scratch.training.checkpointing import (
    RunCheckpoint,
    SignalCheckpoint,
    best_checkpoint,
)
from lit_gpt_scratch.training.distributed import RankConsistencyCheck
from lit_gpt_scratch.training.progress import LogLines
from lit_gpt_scratch.training.throughput import Throughput

RECORDERS = (SampleRecorder, SymbolLossRecorder, AttentionRecorder)
ORDER: list[tuple[type, type, str]] = [
    (RankConsistencyCheck, SignalCheckpoint, "ranks are compared before signals are handled"),
    *[(r, WandbCheckpoints, "W&B's row must be complete when it is committed") for r in RECORDERS],
    *[(r, RunCheckpoint, "a checkpoint must count the rows of its step") for r in RECORDERS],
    (WandbCheckpoints, RunCheckpoint, "W&B's row must be on disk before its checkpoint"),
    *[(r, Throughput, "the clock of training must exclude the recorders") for r in RECORDERS],
    (WandbCheckpoints, Throughput, "the clock of training must exclude W&B's commit"),
    (SignalCheckpoint, Throughput, "the clock of training starts after all other preparations"),
    (SampleRecorder, LogLines, "nothing is printed for a validation whose sample cannot be drawn"),
]


@pytest.mark.parametrize(("first", "second", "reason"), ORDER)
def test_a_callback_comes_before_another(
    first: type, second: type, reason: str, tmp_path: Path
) -> None:
    kinds = [type(callback) for callback in make_callbacks(tmp_path, LogLines(), is_saving=True)]
    assert kinds.index(first) < kinds.index(second), reason


def test_the_order_covers_every_callback(tmp_path: Path) -> None:
    """The others have no hook that another callback's place affects."""
    kinds = {type(callback) for callback in make_callbacks(tmp_path, LogLines(), is_saving=True)}
    named = {kind for first, second, _ in ORDER for kind in (first, second)}
    assert kinds - named == {RowCounts, LayerStatistics, EarlyValidations}


def test_the_last_checkpoint_knows_the_best_of_the_same_validation(tmp_path: Path) -> None:
    """Therefore `best` is saved before `last`: a resumed run compares with the true best."""
    run = train_small(tmp_path, "--trainer.val_check_interval=2")
    state = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)
    best, expected = state["callbacks"]["RunCheckpoint: best"], best_checkpoint(run.trainer)
    assert expected
    assert best["best_model_score"] == expected.best_model_score
    callbacks = make_callbacks(tmp_path, None, is_saving=True)
    assert [c.filename for c in callbacks if isinstance(c, RunCheckpoint)] == ["best", "last"]


def test_a_run_that_saves_nothing_has_no_checkpoint_callbacks(tmp_path: Path) -> None:
    callbacks = make_callbacks(tmp_path, None, is_saving=False)
    assert not any(isinstance(callback, RunCheckpoint) for callback in callbacks)


def test_a_checkpoint_counts_the_rows_of_its_own_validation(tmp_path: Path) -> None:
    run = train_small(tmp_path, "--trainer.val_check_interval=2")
    checkpoint: dict[str, Any] = torch.load(
        run.folder / "checkpoints" / "last.ckpt", weights_only=True
    )
    lines = checkpoint["callbacks"]["Saver"]["lines"]
    assert set(lines) == {"metrics.csv", "samples.csv", "symbols.csv"}
    for name, count in lines.items():
        assert count == (run.folder / name).read_bytes().count(b"\n"), name
