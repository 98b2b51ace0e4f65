"""Epochs, and the batch of each step, under Lightning's own Trainer."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lit_gpt_scratch.data import CharDataModule
from lit_gpt_scratch.models import Bigram
from lit_gpt_scratch.private_api import set_logged_step
from lit_gpt_scratch.training import LitCharLM
from lit_gpt_scratch.training.checkpointing import SignalCheckpoint

SIZE, CONTEXT, BATCH = 3_000, 8, 4
EPOCH = int(SIZE * 0.9) // (CONTEXT * BATCH)  # steps in which the training text is seen once
TRAINER: dict[str, Any] = {
    "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
    "enable_model_summary": False, "limit_val_batches": 1, "num_sanity_val_steps": 0,
}  # fmt: skip
BY_STEPS = {"max_epochs": -1, "check_val_every_n_epoch": None}


class History(Callback):
    """Remembers each batch and the step of each validation."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int]] = []  # step, dropout seed
        self.validations: list[int] = []

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches.append((trainer.global_step, batch.seed))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.validations.append(trainer.global_step)


def train(
    *callbacks: Callback, ckpt_path: Path | None = None, **arguments: Any
) -> tuple[pl.Trainer, History]:
    torch.manual_seed(0)
    data = CharDataModule("sample", CONTEXT, BATCH, sample_size=SIZE)
    model = LitCharLM(net=Bigram, alphabet=data.alphabet, context=CONTEXT)
    history = History()
    trainer = pl.Trainer(
        callbacks=[history, *callbacks],
        # Else Lightning adds one that saves into the working directory.
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        **TRAINER | arguments,
    )
    trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
    return trainer, history


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"max_epochs": 2}, 2 * EPOCH),
        ({"max_epochs": 2, "limit_train_batches": 20}, 40),
        ({"max_epochs": 2, "limit_train_batches": 0.5}, 2 * (EPOCH // 2)),
        ({"max_epochs": 2, "accumulate_grad_batches": 3}, 2 * (EPOCH // 3)),
        ({"max_epochs": 3, "limit_train_batches": 5, "accumulate_grad_batches": 2}, 9),
        ({"max_epochs": 2, "max_steps": 5}, 5),
        ({"max_steps": EPOCH + 5}, EPOCH + 5),
    ],
)
def test_steps_of_a_fit(arguments: dict[str, Any], steps: int) -> None:
    """Batch k is a function of the step: no epoch begins with the batches of the one before."""
    trainer, history = train(**arguments)
    assert trainer.global_step == steps
    assert len(set(history.batches)) == len({seed for _, seed in history.batches})
    assert len(history.batches) == len(set(history.batches))
    assert history.validations[-1] == steps
    schedule: Any = trainer.lr_scheduler_configs[0].scheduler
    assert schedule.get_last_lr() == [0.0]  # it knows the last step


def test_overfit_batches_are_the_same_in_every_epoch() -> None:
    _, history = train(max_epochs=3, overfit_batches=5)
    seeds = [seed for _, seed in history.batches]
    assert seeds == 3 * seeds[:5]
    assert len(set(seeds)) == 5


def test_a_fit_limited_by_time_keeps_its_learning_rate(capsys: pytest.CaptureFixture[str]) -> None:
    class StopAfter(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == EPOCH + 30

    trainer, _ = train(StopAfter(), max_time="01:00:00:00")
    assert trainer.global_step == EPOCH + 30
    assert math.isinf(trainer.estimated_stepping_batches)
    (scheduler,) = (config.scheduler for config in trainer.lr_scheduler_configs)
    assert scheduler.get_last_lr() == scheduler.base_lrs
    assert "the learning rate does not fall" in capsys.readouterr().err


class SaveBeforeEachStep(SignalCheckpoint):
    """Saves as SIGTERM would, before each step."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            set_logged_step(trainer)
            self.path = self.folder / f"before_{trainer.global_step}.ckpt"
            self.save(trainer)


def weights(trainer: pl.Trainer) -> Iterator[torch.Tensor]:
    return iter(trainer.lightning_module.parameters())


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_epochs": 2, "limit_train_batches": 3},
        {"max_epochs": 2, "limit_train_batches": 1},
        {"max_epochs": 2, "limit_train_batches": 3, "accumulate_grad_batches": 2},
        {"max_epochs": 2, "overfit_batches": 2},
        {"max_steps": 5, "limit_train_batches": 2, "val_check_interval": 2} | BY_STEPS,
        {
            "max_epochs": 2,
            "limit_train_batches": 3,
            "val_check_interval": 4,
            "check_val_every_n_epoch": None,
        },
        {"max_epochs": 2, "limit_train_batches": 4, "val_check_interval": 0.5},
    ],
)
def test_a_run_resumed_at_any_step_is_the_same_run(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    """Saved by our callback before each step, and by Lightning's after each."""
    after = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    validated = ModelCheckpoint(
        tmp_path, filename="validated_{step}", save_on_train_epoch_end=False, save_top_k=-1
    )
    whole, history = train(SaveBeforeEachStep(tmp_path), after, validated, **arguments)
    paths = [*tmp_path.glob("*.ckpt")]
    assert len(paths) > whole.global_step
    for path in paths:
        step = torch.load(path, weights_only=True)["global_step"]
        resumed, rest = train(ckpt_path=path, **arguments)
        assert rest.batches == [batch for batch in history.batches if batch[0] >= step], path.name
        assert rest.validations == [v for v in history.validations if v > step], path.name
        for one, other in zip(weights(resumed), weights(whole), strict=True):
            assert torch.equal(one, other), path.name
