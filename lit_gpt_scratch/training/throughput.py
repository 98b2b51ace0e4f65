"""Measures training speed: characters per second, model-FLOP utilisation, seconds of training."""

import sys
import time
from copy import deepcopy
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.throughput import get_available_flops, measure_flops
from lightning.pytorch.callbacks import Callback

from lit_gpt_scratch.training.hardware import measured_flops
from lit_gpt_scratch.training.train_loss import is_log_step


class Throughput(Callback):
    """Logs `chars_per_sec`, `mfu`, `tokens_seen` and `train_seconds`; validation time is left out.

    `mfu`, model-FLOP utilisation, is the floating-point operations that the network needs over
    those that the device can do (Chowdhery et al. 2022, appendix B). The device's peak is its
    maker's figure, or, on a CPU, the measured speed of a matrix product.

    Attributes:
        train_seconds: Time of all steps so far.
    """

    def __init__(self) -> None:
        self.train_seconds = 0.0
        self._started = 0.0  # when the clock was last started; 0: stopped
        self._logged_step, self._logged_seconds = 0, 0.0
        self._flops_per_step, self._peak_flops = 0, 0.0

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Count operations before the network is compiled."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        flops = self._count_flops(trainer, pl_module.net, data.batch_size, data.context)
        self._flops_per_step = flops * trainer.accumulate_grad_batches
        device = trainer.strategy.root_device
        dtype = torch.bfloat16 if "bf16" in str(trainer.precision) else torch.float32
        peak: float | None = None
        if device.type == "cuda":
            peak = get_available_flops(device, dtype)
        elif device.type == "cpu":
            peak = measured_flops(dtype)
        self._peak_flops = (peak or 0.0) * trainer.world_size

    @staticmethod
    def _count_flops(trainer: pl.Trainer, net: torch.nn.Module, batch: int, context: int) -> int:
        """Count a forward and backward pass on the meta device, which computes nothing."""
        net = deepcopy(net).to("meta").train()
        ids = torch.zeros(batch, context, dtype=torch.long, device="meta")
        try:
            return measure_flops(net, lambda: net(ids), torch.Tensor.sum)
        except (NotImplementedError, RuntimeError) as error:  # an operation lacks a meta version
            if trainer.is_global_zero:
                print(
                    f"Notice: mfu is not logged: operations cannot be counted ({error}).",
                    file=sys.stderr,
                )
            return 0

    def state_dict(self) -> dict[str, Any]:
        seconds = self.train_seconds, self._logged_seconds
        return {"seconds": [*seconds], "logged_step": self._logged_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.train_seconds, self._logged_seconds = map(float, state_dict["seconds"])
        self._logged_step = int(state_dict["logged_step"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._logged_step or not is_log_step(trainer, step):
            return
        self._read_clock()
        seconds = self.train_seconds - self._logged_seconds
        steps = step - self._logged_step
        chars = self._chars_per_step(trainer)
        pl_module.log("chars_per_sec", steps * chars / seconds)
        if self._flops_per_step and self._peak_flops:
            achieved = steps * self._flops_per_step / seconds
            pl_module.log("mfu", achieved / self._peak_flops)
        pl_module.log("tokens_seen", float(step * chars))
        pl_module.log("train_seconds", self.train_seconds)
        self._logged_step, self._logged_seconds = step, self.train_seconds

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._started:
            self._read_clock()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._started:
            pl_module.log("tokens_seen", float(trainer.global_step * self._chars_per_step(trainer)))
            pl_module.log("train_seconds", self.train_seconds)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = time.perf_counter() if self._started else 0.0

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._read_clock()
        self._started = 0.0

    def _read_clock(self) -> None:
        """Add the time since the clock was last read or started."""
        now = time.perf_counter()
        self.train_seconds += now - self._started
        self._started = now

    @staticmethod
    def _chars_per_step(trainer: pl.Trainer) -> int:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        return int(data.batch_size * data.context * trainer.accumulate_grad_batches)
