"""Stops a run whose losses or weights are no longer finite, before it is saved or sampled."""

import math
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lit_gpt_scratch.errors import InputError

REMEDY = "lower --model.optimizer.lr, or use --trainer.precision 32-true."


def require_finite_losses(losses: Tensor, step: int) -> None:
    """Raise InputError unless the last N losses of P processes, (P, N), are finite numbers."""
    bad = (~losses.isfinite()).any(0)
    if bad.any():
        first = int(bad.nonzero()[0])
        worst, ago = float(losses[:, first].max()), losses.size(1) - first
        raise InputError(
            f"the training loss is {worst}, {ago} batches before step {step + 1}: {REMEDY}"
        )


class RequireFinite(Callback):
    """Raises InputError for a validation loss or weights that are not finite.

    Weights are checked before each save: a step can have a finite loss and still produce weights
    that are not finite.
    """

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit":
            return
        loss = float(pl_module.losses["val"].compute())
        if not math.isfinite(loss):
            raise InputError(
                f"the validation loss is {loss} after step {trainer.global_step}: {REMEDY}"
            )

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if not all(weight.isfinite().all() for weight in checkpoint["state_dict"].values()):
            raise InputError(
                f"not all weights are finite numbers after step {trainer.global_step}: {REMEDY}"
            )
