"""Logs the training loss, the gradient norm and the learning rate at regular steps."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lit_gpt_scratch.training.finite import require_finite_losses


def is_log_step(trainer: pl.Trainer, step: int) -> bool:
    """Return whether training metrics are logged after a step: at intervals, and at the last."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return step % every == 0 or step == trainer.max_steps


class TrainLoss(Callback):
    """Logs `train/loss`, the mean over all batches since the last row, with `grad_norm` and `lr`.

    Losses that are not logged yet go into the checkpoint, so that a resumed run logs the same rows.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.pending: list[Tensor] = []  # one scalar per batch of this process

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        # Before clipping, and only at log steps: the norm of all gradients takes time.
        if is_log_step(trainer, trainer.global_step + 1):
            grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
            pl_module.log("grad_norm", torch.nn.utils.get_total_norm(grads))
            pl_module.log("lr", optimizer.param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Lightning has divided the loss by the number of accumulated batches.
        self.pending.append(outputs["loss"] * trainer.accumulate_grad_batches)
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if stepped and is_log_step(trainer, trainer.global_step):
            pl_module.log("train/loss", self._gather(pl_module).mean(), prog_bar=True)
            pl_module.log("step", float(trainer.global_step))  # Lightning's own axis starts at 0
            self.pending.clear()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            pl_module.log("step", float(trainer.global_step))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["unlogged"] = self._gather(pl_module).cpu()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore each process's own losses, or the mean of all if their number has changed."""
        losses = checkpoint.get("unlogged")
        if isinstance(losses, Tensor) and losses.is_floating_point() and losses.dim() == 2:
            same = len(losses) == trainer.world_size
            self.pending = [*(losses[trainer.global_rank] if same else losses.mean(0))]

    def _gather(self, pl_module: pl.LightningModule) -> Tensor:
        """Return the pending losses of all P processes, (P, N).

        Raises:
            InputError: A loss is infinite or not a number. All processes raise it together.
        """
        if not self.pending:
            return torch.empty(1, 0)
        own = torch.stack([loss.to(pl_module.device) for loss in self.pending])
        gathered: Any = pl_module.all_gather(own)
        losses = gathered.view(-1, len(own))
        require_finite_losses(losses, pl_module.global_step)
        return losses
