"""LitCharLM and CharDataModule under Lightning's own Trainer, without our command line.

A script would use them as Lightning's documentation shows.
"""

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lit_gpt_scratch import inspection
from lit_gpt_scratch.data import CharDataModule
from lit_gpt_scratch.models import GPT, AttentionLM, Bigram, MultiHeadAttention
from lit_gpt_scratch.training import AdamW, LitCharLM

STEPS = {"accelerator": "cpu", "check_val_every_n_epoch": None, "val_check_interval": 4}


def build(**arguments: Any) -> tuple[LitCharLM, CharDataModule]:
    torch.manual_seed(0)
    data = CharDataModule("sample", context=16, batch_size=4, sample_size=20_000)
    net = partial(GPT, layers=1, width=16)
    return LitCharLM(**{"net": net} | arguments, alphabet=data.alphabet, context=16), data


@pytest.mark.parametrize("_attempt", [1, 2])
def test_fit_validate_load_predict(_attempt: int, tmp_path: Path) -> None:
    """Twice in one process, with Lightning's own callbacks and logger."""
    model, data = build()
    best = ModelCheckpoint(tmp_path / "checkpoints", monitor="val/loss")
    trainer = pl.Trainer(
        max_steps=8, log_every_n_steps=2, logger=CSVLogger(tmp_path / "logs"),
        callbacks=[
            best, LearningRateMonitor(), EarlyStopping("val/loss"), ModelSummary(),
            TQDMProgressBar(refresh_rate=5),
        ],
        **STEPS,
    )  # fmt: skip
    trainer.fit(model, data)
    assert trainer.global_step == 8
    assert {"train/loss", "grad_norm", "lr", "val/loss", "val/gap"} <= set(trainer.callback_metrics)
    (row,) = trainer.validate(model, data, ckpt_path="best", verbose=False)
    assert row["val/loss"] == pytest.approx(float(best.best_model_score), abs=1e-6)

    loaded = LitCharLM.load_from_checkpoint(best.best_model_path)
    for one, other in zip(loaded.parameters(), model.cpu().parameters(), strict=True):
        assert torch.equal(one.cpu(), other)
    prompts = DataLoader([model.tokenizer.encode("ANSELM:")] * 2, batch_size=2)
    ((first, second),) = trainer.predict(loaded, prompts)
    assert first.startswith("ANSELM:")
    assert second.startswith("ANSELM:")
    assert first != second


def test_a_plain_trainer_resumes_its_own_checkpoint(tmp_path: Path) -> None:
    """To the same weights as a run that was never interrupted."""

    def train(steps: int, ckpt_path: Path | None = None) -> LitCharLM:
        model, data = build(schedule=None)
        trainer = pl.Trainer(
            max_steps=steps, logger=False, enable_checkpointing=False, **STEPS | {"devices": 1}
        )
        trainer.fit(model, data, ckpt_path=ckpt_path)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return model

    train(4)
    resumed = train(8, tmp_path / "4.ckpt")
    for one, other in zip(resumed.parameters(), train(8).parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "arguments",
    [
        {"net": Bigram, "optimizer": AdamW, "schedule": None},
        {"net": partial(AttentionLM, attention=partial(MultiHeadAttention, heads=2), width=16)},
        {"optimizer": partial(torch.optim.SGD, lr=0.1)},
    ],
    ids=["classes", "nested partials", "torch.optim"],
)
def test_hyperparameters_are_plain_data(arguments: dict[str, Any], tmp_path: Path) -> None:
    model, data = build(**arguments)
    trainer = pl.Trainer(max_steps=1, logger=False, enable_checkpointing=False, **STEPS)
    trainer.fit(model, data)
    path = tmp_path / "model.ckpt"
    trainer.save_checkpoint(path)
    loaded = LitCharLM.load_from_checkpoint(path, weights_only=True)
    ids = torch.arange(10)[None]
    assert torch.equal(loaded.cpu()(ids), model.cpu()(ids))
    assert loaded.hparams == model.hparams
    if "torch" not in str(model.hparams["optimizer"]):  # whose classes need a --plugin
        assert torch.equal(inspection.load(path)(ids), model.eval()(ids))
