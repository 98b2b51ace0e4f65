"""The callbacks that LitCharLM adds to every fit: dropout seeds, losses and checks."""

import math
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.training.compilation import CompileBlocks
from lit_gpt_scratch.training.distillation import LoadTeacher, Teacher
from lit_gpt_scratch.training.hardware import seed_device
from lit_gpt_scratch.training.optim import parameter_groups
from lit_gpt_scratch.training.sharding import require_supported, total_norm

REMEDY = "lower --model.optimizer.lr, or use --trainer.precision 32-true."


def fit_callbacks(trainer: Any, compile: bool | str, teacher: Teacher | None) -> list[Callback]:
    """Return the callbacks of a fit, except those that the Trainer has from an earlier fit.

    Raise InputError for a strategy that is not supported.
    """
    require_supported(trainer)
    kinds: list[type[Callback]] = [SeedDropout, ApplyOptimizerSettings, TrainLoss, ValidateAtEnd]
    kinds += [RequireFinite, *[CompileBlocks] * bool(compile), *[LoadTeacher] * bool(teacher)]
    present = {type(callback) for callback in trainer.callbacks}
    return [kind() for kind in kinds if kind not in present]


class SeedDropout(Callback):
    """Makes dropout a function of the batch and the rank: no random state has to be saved."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
        seed_device(pl_module.device, (batch.seed + trainer.global_rank) % (1 << 63))


class ApplyOptimizerSettings(Callback):
    """Replaces the optimizer settings of a resumed checkpoint with those of this run.

    The schedule continues at the saved step. If max_steps has changed, the learning rate of that
    step is computed again.
    """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        groups = trainer.optimizers[0].param_groups
        configured = pl_module.make_optimizer(params=parameter_groups(pl_module.net)).param_groups
        for group, wanted in zip(groups, configured, strict=True):
            lr, peak = group["lr"], group.get("initial_lr", group["lr"])
            if pl_module.make_schedule is None:
                lr = wanted["lr"]
            elif wanted["lr"] != peak:  # keep the schedule's fraction of the peak
                lr = wanted["lr"] * (lr / peak if peak else 1.0)
            kept = {"params": group["params"], "lr": lr, "initial_lr": wanted["lr"]}
            group.update(wanted | kept)
        for config in trainer.lr_scheduler_configs:  # max_steps may have changed: compute it again
            scheduler: Any = config.scheduler
            scheduler.base_lrs = [group["initial_lr"] for group in groups]
            for group, factor in zip(groups, getattr(scheduler, "lr_lambdas", ()), strict=False):
                group["lr"] = group["initial_lr"] * factor(scheduler.last_epoch)


def is_log_step(trainer: Any, step: int) -> bool:
    """Return whether training metrics are logged after a step: at intervals, and at the last."""
    return step % trainer.log_every_n_steps == 0 or step == trainer.estimated_stepping_batches


class TrainLoss(Callback):
    """Logs `train/loss`, the mean over all batches since the last row, with `grad_norm` and `lr`.

    Losses that are not logged yet go into the checkpoint, so that a resumed run logs the same rows.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.pending: list[Tensor] = []  # one scalar per batch of this process

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._step = trainer.global_step  # the last step seen

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        # Before clipping, and only at log steps: the norm of all gradients takes time.
        if is_log_step(trainer, trainer.global_step + 1):
            grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
            pl_module.log("grad_norm", total_norm(grads))
            pl_module.log("lr", optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        loss = outputs.get("data_loss")
        if loss is None:  # of your own training_step; Lightning has divided it by the batches
            loss = outputs["loss"] * trainer.accumulate_grad_batches
        self.pending.append(loss)
        stepped, self._step = trainer.global_step > self._step, trainer.global_step
        if stepped and is_log_step(trainer, trainer.global_step):
            pl_module.log("train/loss", self._gather(pl_module).mean(), prog_bar=True)
            pl_module.log("step", float(trainer.global_step))  # Lightning's own axis starts at 0
            self.pending.clear()

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "fit":
            pl_module.log("step", float(trainer.global_step))

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["unlogged"] = self._gather(pl_module).cpu()

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Restore each process's own losses, or the mean of all if their number has changed."""
        losses = checkpoint.get("unlogged")
        if isinstance(losses, Tensor) and losses.is_floating_point() and losses.dim() == 2:
            same = len(losses) == trainer.world_size
            self.pending = [*(losses[trainer.global_rank] if same else losses.mean(0))]

    def _gather(self, pl_module: Any) -> Tensor:
        """Return the pending losses of all P processes, (P, N); (1, 0) if there are none.

        Raise InputError, in all processes, if a loss is infinite or not a number.
        """
        if not self.pending:
            return torch.empty(1, 0)
        own = torch.stack([loss.to(pl_module.device) for loss in self.pending])
        losses: Tensor = pl_module.all_gather(own).view(-1, len(own))
        bad = (~losses.isfinite()).any(0).nonzero()
        if len(bad):
            first, parts = int(bad[0]), pl_module.trainer.accumulate_grad_batches
            step = pl_module.global_step - (len(own) - 1 - first) // parts
            loss = float(losses[:, first].max())
            raise InputError(f"the training loss is {loss} at step {step}: {REMEDY}")
        return losses


class RequireFinite(Callback):
    """Raises InputError for a validation loss or weights that are not finite.

    Weights are checked before each save: a step can have a finite loss and still produce weights
    that are not finite.
    """

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "fit":
            loss = float(pl_module.mean_losses["val"].compute())
            if not math.isfinite(loss):
                step = trainer.global_step
                raise InputError(f"the validation loss is {loss} after step {step}: {REMEDY}")

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        is_finite = all(weight.isfinite().all() for weight in checkpoint["state_dict"].values())
        # Only rank 0 may have the weights.
        if not trainer.strategy.reduce_boolean_decision(is_finite):
            step = trainer.global_step
            raise InputError(f"not all weights are finite numbers after step {step}: {REMEDY}")


class ValidateAtEnd(Callback):
    """Validates after the last step, even if no validation is due then."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        # From a checkpoint of this validation, Lightning would train one step too many.
        self.stop_at_end(trainer)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.stop_at_end(trainer)

    def stop_at_end(self, trainer: Any) -> None:
        """After the last step, ask Lightning to stop: it validates first."""
        if trainer.global_step >= trainer.estimated_stepping_batches:
            # min_epochs and min_steps may ask for more steps than there are.
            trainer.fit_loop.min_epochs = trainer.fit_loop.epoch_loop.min_steps = None
            trainer.should_stop = True


class EarlyValidations(Callback):
    """Adds validations after 1, 10, 30, 100, 300, ... steps, so that a curve shows its fall.

    They end where they would come close to the interval between validations. A run that is
    validated only at its end, or in epochs (`check_val_every_n_epoch`), gets none.
    """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.interval = trainer.val_check_batch  # batches between two validations
        batches = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
        self.is_wanted = trainer.check_val_every_n_epoch is None and self.interval < batches

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        trainer.val_check_batch = self.interval

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        parts, batches = trainer.accumulate_grad_batches, trainer.fit_loop.total_batch_idx + 1
        is_early = is_early_step(trainer.global_step) and batches == trainer.global_step * parts
        if self.is_wanted and is_early and 3 * batches <= self.interval:
            trainer.val_check_batch = batches  # Lightning validates at multiples of it

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "fit":
            trainer.val_check_batch = self.interval


def is_early_step(step: int) -> bool:
    """Return whether a step is 1 or one of 10, 30, 100, 300 and so on."""
    return step == 1 or (step >= 10 and str(step).rstrip("0") in ("1", "3"))
