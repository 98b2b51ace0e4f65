"""Training speed: characters per second, model-FLOP utilisation, and seconds of training."""

import sys
import time
from copy import deepcopy
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.throughput import get_available_flops, measure_flops
from lightning.pytorch.callbacks import Callback

from lit_gpt_scratch.training.hardware import measured_flops


class Throughput(Callback):
    """Logs `chars_per_sec`, `mfu`, `tokens_seen`, `train_seconds`, all without validation's time.

    `mfu`, model-FLOP utilisation, is the floating-point operations that the network's passes need,
    over those that the device can do (Chowdhery et al. 2022, appendix B): as its maker says, or, on
    a CPU, as a matrix product takes.

    Attributes:
        train_seconds: Of all steps so far, without validation.
    """

    def __init__(self) -> None:
        self.train_seconds = 0.0
        self._since = 0.0
        self._logged_step, self._logged_seconds = 0, 0.0
        self._flops_per_step, self._flops_per_sec = 0, 0.0

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Count on the meta device, where nothing is computed, and before anything is compiled."""
        device = trainer.strategy.root_device
        dtype = torch.bfloat16 if "bf16" in str(trainer.precision) else torch.float32
        net = deepcopy(pl_module.net).to("meta").train()
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        ids = torch.zeros(data.batch_size, data.context, dtype=torch.long, device="meta")
        try:
            passes = measure_flops(net, lambda: net(ids), torch.Tensor.sum)
        except (NotImplementedError, RuntimeError) as error:  # it must see real numbers
            passes = 0
            if trainer.is_global_zero:
                print(f"Notice: mfu is not logged, for want of a count ({error}).", file=sys.stderr)
        each: float | None = None
        if device.type == "cuda":
            each = get_available_flops(device, dtype)
        elif device.type == "cpu":
            each = measured_flops(dtype)
        self._flops_per_step = passes * trainer.accumulate_grad_batches
        self._flops_per_sec = (each or 0.0) * trainer.world_size

    def state_dict(self) -> dict[str, Any]:
        seconds = self.train_seconds, self._logged_seconds
        return {"seconds": [*seconds], "logged_step": self._logged_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.train_seconds, self._logged_seconds = map(float, state_dict["seconds"])
        self._logged_step = int(state_dict["logged_step"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._logged_step or not pl_module.logs_after(step):
            return
        self._pause()
        seconds = self.train_seconds - self._logged_seconds
        steps = step - self._logged_step
        chars = self._chars_per_step(trainer)
        pl_module.log("chars_per_sec", steps * chars / seconds)
        if self._flops_per_step and self._flops_per_sec:
            achieved = steps * self._flops_per_step / seconds
            pl_module.log("mfu", achieved / self._flops_per_sec)
        pl_module.log("tokens_seen", float(step * chars))
        pl_module.log("train_seconds", self.train_seconds)
        self._logged_step, self._logged_seconds = step, self.train_seconds

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._since:
            self._pause()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._since:
            pl_module.log("tokens_seen", float(trainer.global_step * self._chars_per_step(trainer)))
            pl_module.log("train_seconds", self.train_seconds)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.perf_counter() if self._since else 0.0

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._pause()
        self._since = 0.0

    def _pause(self) -> None:
        """Add what has passed since the last pause."""
        now = time.perf_counter()
        self.train_seconds += now - self._since
        self._since = now

    @staticmethod
    def _chars_per_step(trainer: pl.Trainer) -> int:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        return int(data.batch_size * data.context * trainer.accumulate_grad_batches)
