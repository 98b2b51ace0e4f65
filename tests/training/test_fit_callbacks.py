"""Dropout seeds, and validation at the last step."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt_scratch.data import CharDataModule
from lit_gpt_scratch.training.callbacks import SeedDropout, ValidateAtEnd, fit_callbacks
from lit_gpt_scratch.training.compilation import CompileBlocks
from lit_gpt_scratch.training.distillation import LoadTeacher, Teacher

CPU = SimpleNamespace(device=torch.device("cpu"))


def dropped(seed: int, rank: int = 0) -> Tensor:
    """Dropout as it falls in the batch of a seed, on a rank."""
    torch.rand(3)
    trainer, batch = SimpleNamespace(global_rank=rank), SimpleNamespace(seed=seed)
    callback: Any = SeedDropout()
    callback.on_train_batch_start(trainer, CPU, batch, 0)
    return F.dropout(torch.ones(100))


def test_dropout_is_a_function_of_the_batch_and_the_rank() -> None:
    assert torch.equal(dropped(5), dropped(5))
    assert not torch.equal(dropped(5), dropped(6))
    assert not torch.equal(dropped(5), dropped(5, rank=1))
    assert torch.equal(dropped((1 << 63) - 1, rank=1), dropped(0))  # within 63 bits


def test_batches_have_different_seeds() -> None:
    data = CharDataModule("sample", 12, 4, seed=1, sample_size=20_000)
    data.open()
    assert data.train_windows(0).seed != data.train_windows(1).seed


def test_a_second_fit_keeps_the_callbacks_of_the_first() -> None:
    trainer: Any = SimpleNamespace(callbacks=[], strategy=None)
    teacher = Teacher("a.ckpt", weight=1.0, temperature=1.0)
    trainer.callbacks += fit_callbacks(trainer, True, teacher)
    assert len(trainer.callbacks) > 1
    assert fit_callbacks(trainer, True, teacher) == []
    only_if_asked = {CompileBlocks, LoadTeacher}
    assert only_if_asked < {type(callback) for callback in trainer.callbacks}
    other: Any = SimpleNamespace(callbacks=[], strategy=None)
    assert only_if_asked.isdisjoint(map(type, fit_callbacks(other, False, None)))


@pytest.mark.parametrize(
    ("step", "steps", "stops"), [(3, 4, False), (4, 4, True), (4, math.inf, False)]
)
def test_training_stops_after_the_last_step(step: int, steps: float, stops: bool) -> None:
    """Also if min_steps asks for more."""
    loop = SimpleNamespace(min_epochs=None, epoch_loop=SimpleNamespace(min_steps=9))
    trainer: Any = SimpleNamespace(
        global_step=step, estimated_stepping_batches=steps, should_stop=False, fit_loop=loop
    )
    ValidateAtEnd().on_train_batch_end(trainer)
    assert trainer.should_stop == stops
    assert (loop.epoch_loop.min_steps is None) == stops
