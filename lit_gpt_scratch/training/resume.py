"""Applies this run's optimizer and schedule settings to a state that was resumed."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from lit_gpt_scratch.training.optim import parameter_groups


class ApplyOptimizerSettings(Callback):
    """Overwrites the optimizer settings of a resumed checkpoint by those of this run.

    The schedule continues at the saved step. If max_steps has changed, the learning rate of that
    step is computed again.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        groups = trainer.optimizers[0].param_groups
        configured = pl_module.make_optimizer(params=parameter_groups(pl_module.net)).param_groups
        for group, wanted in zip(groups, configured, strict=True):
            peak = group.get("initial_lr", group["lr"])
            if wanted["lr"] != peak:
                group["lr"] = wanted["lr"] * (group["lr"] / peak if peak else 1.0)
            group.update({k: v for k, v in wanted.items() if k not in ("params", "lr")})
            group["initial_lr"] = wanted["lr"]
            if pl_module.make_schedule is None:
                group["lr"] = wanted["lr"]
        for config in trainer.lr_scheduler_configs:
            scheduler: Any = config.scheduler
            scheduler.base_lrs = [group["initial_lr"] for group in groups]
            for group, factor in zip(groups, getattr(scheduler, "lr_lambdas", ()), strict=False):
                group["lr"] = group["initial_lr"] * factor(scheduler.last_epoch)
