"""The callbacks that a model brings to every fit; the small ones are defined here."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from lit_gpt_scratch.training.finite import RequireFinite
from lit_gpt_scratch.training.resume import ApplyOptimizerSettings
from lit_gpt_scratch.training.train_loss import TrainLoss


def fit_callbacks(trainer: Any, compile: bool) -> list[Callback]:
    """Return the callbacks of a fit, except those that the Trainer has from an earlier fit."""
    callbacks: list[Callback] = [SeedDropout(), ApplyOptimizerSettings(), TrainLoss()]
    callbacks += [ValidateAtEnd(), RequireFinite()]
    if compile:
        callbacks.append(CompileBlocks())
    present = {type(callback) for callback in trainer.callbacks}
    return [callback for callback in callbacks if type(callback) not in present]


class SeedDropout(Callback):
    """Makes dropout a function of the batch and the rank: no random state has to be saved."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        seed = (batch.seed + trainer.global_rank) % (1 << 63)
        device = pl_module.device
        if device.type == "cuda":
            torch.cuda.default_generators[device.index or 0].manual_seed(seed)
        elif device.type == "mps":
            torch.mps.manual_seed(seed)
        else:  # 100 times faster than torch.manual_seed, which seeds every device
            torch.default_generator.manual_seed(seed)


class CompileBlocks(Callback):
    """Compiles a network with torch.compile before training.

    Blocks are compiled one by one, because blocks of one shape share the compiled code; in place,
    because a compiled copy would rename the keys of the checkpoint.
    """

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            modules = pl_module.net.modules()
            blocks = [block for module in modules for block in getattr(module, "blocks", ())]
            for part in blocks or [pl_module.net]:
                part.compile()


class ValidateAtEnd(Callback):
    """Validates after the last step, even if no validation is due then."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True  # Lightning validates before it stops
