"""Validations after 1, 10, 30, ... steps: where they come, and that a resumed run has the same."""

import csv
from pathlib import Path

import pytest
import torch
from laws import train_small

from lit_gpt_scratch.training.callbacks import is_early_step

STOP = ["--trainer.callbacks+=extra_callbacks.SendSignal", "--trainer.callbacks.step"]


def validations(folder: Path) -> dict[int, str]:
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        rows = csv.DictReader(file)
        return {int(row["step"]): row["val/loss"] for row in rows if row.get("val/loss")}


def test_early_steps() -> None:
    found = [step for step in range(1, 20_000) if is_early_step(step)]
    assert found == [1, 10, 30, 100, 300, 1000, 3000, 10_000]


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        (["--trainer.max_steps=41", "--trainer.val_check_interval=30"], [1, 10, 30, 41]),
        (["--trainer.max_steps=6", "--trainer.val_check_interval=2"], [2, 4, 6]),
        (["--trainer.max_steps=12", "--trainer.val_check_interval=12"], [12]),
        (["--trainer.max_steps=12", "--trainer.val_check_interval=100"], [12]),
        (
            ["--trainer.max_steps=12", "--trainer.val_check_interval=30",
             "--trainer.accumulate_grad_batches=3"], [1, 10, 12],
        ),
        (["--trainer.max_steps=12", "--trainer.limit_val_batches=0"], []),
        (
            ["--trainer.max_steps=-1", "--trainer.max_epochs=2", "--trainer.limit_train_batches=12",
             "--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=1.0"], [12, 24],
        ),
    ],
)  # fmt: skip
def test_where_they_come(flags: list[str], steps: list[int], tmp_path: Path) -> None:
    assert [*validations(train_small(tmp_path, *flags).folder)] == steps


@pytest.mark.parametrize("stop", [0, 1, 9, 10, 29])
def test_a_resumed_run_validates_at_the_same_steps(stop: int, tmp_path: Path) -> None:
    flags = ["--trainer.max_steps=33", "--trainer.val_check_interval=30"]
    whole = train_small(tmp_path, *flags)
    with pytest.raises(SystemExit):
        train_small(tmp_path, *flags, STOP[0], f"{STOP[1]}={stop}", "--name=stopped")
    folder = tmp_path / "runs" / "stopped" / "version_0"
    train_small(tmp_path, *flags, f"--ckpt_path={folder}", "--name=stopped")
    assert validations(folder) == validations(whole.folder)


def test_training_is_the_same_with_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--trainer.max_steps=31", "--trainer.val_check_interval=30"]
    early = train_small(tmp_path, *flags)
    monkeypatch.setattr("lit_gpt_scratch.training.callbacks.is_early_step", lambda _: False)
    late = train_small(tmp_path, *flags)
    assert [*validations(late.folder)] == [30, 31]
    weights = late.model.state_dict()
    assert all(torch.equal(weights[name], w) for name, w in early.model.state_dict().items())
