"""Measures training speed: characters per second, model-FLOP utilisation, seconds of training."""

import sys
import time
import warnings
from copy import deepcopy
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops, measure_flops
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import PyTorchProfiler

from lit_gpt_scratch.errors import describe_error
from lit_gpt_scratch.training.callbacks import is_log_step
from lit_gpt_scratch.training.hardware import measured_flops, synchronize


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second that a device can do.

    This is its maker's figure, where Lightning knows it. Of other devices, such as CPUs, the speed
    of a matrix product is measured.
    """
    with warnings.catch_warnings(action="ignore"):  # Lightning warns where it does not know it
        known = get_available_flops(device, dtype)
    return known or measured_flops(dtype, device=device)


class Throughput(Callback):
    """Logs `chars_per_sec`, `mfu`, `tokens_seen` and `train_seconds`; validation time is left out.

    `mfu`, model-FLOP utilisation, is the floating-point operations that the network needs over
    those that the device can do (Chowdhery et al. 2022, appendix B); see `peak_flops`.
    """

    def __init__(self) -> None:
        self.train_seconds = 0.0  # time of all steps so far
        self._started: float | None = None  # when the clock was last read; None: it is stopped
        self._logged_step, self._logged_seconds = 0, 0.0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Count operations before the network is compiled."""
        data, parts = trainer.datamodule, trainer.accumulate_grad_batches
        self._device = trainer.strategy.root_device
        self._chars_per_step = data.batch_size * data.context * parts
        dtype = torch.bfloat16 if "bf16" in str(trainer.precision) else torch.float32
        self._peak_flops = peak_flops(self._device, dtype) * trainer.world_size
        ids = torch.zeros(data.batch_size, data.context, dtype=torch.long, device="meta")
        try:
            if isinstance(trainer.profiler, PyTorchProfiler):
                raise TypeError("modules with hooks of PyTorchProfiler cannot be copied")
            # On the meta device, which computes nothing.
            net = deepcopy(pl_module.net).to("meta").train()
            self._flops_per_step = parts * measure_flops(net, lambda: net(ids), torch.Tensor.sum)
        except Exception as error:  # for example, an operation without a meta version
            self._flops_per_step = 0
            if trainer.is_global_zero:
                notice = "Notice: mfu is not logged: operations cannot be counted"
                print(f"{notice} ({describe_error(error)}).", file=sys.stderr)

    def state_dict(self) -> dict[str, Any]:
        seconds = [self.train_seconds, self._logged_seconds]
        return {"seconds": seconds, "logged_step": self._logged_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.train_seconds, self._logged_seconds = map(float, state_dict["seconds"])
        self._logged_step = int(state_dict["logged_step"])

    def on_train_start(self, *_: Any) -> None:
        self._started = self._now()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        step = trainer.global_step
        if step == self._logged_step or not is_log_step(trainer, step):
            return
        self._read_clock()
        seconds, steps = self.train_seconds - self._logged_seconds, step - self._logged_step
        pl_module.log("chars_per_sec", steps * self._chars_per_step / seconds)
        if self._flops_per_step:
            pl_module.log("mfu", steps * self._flops_per_step / seconds / self._peak_flops)
        self._log_totals(trainer, pl_module)
        self._logged_step, self._logged_seconds = step, self.train_seconds

    def on_validation_start(self, *_: Any) -> None:
        self._read_clock()

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self._started is not None:
            self._log_totals(trainer, pl_module)

    def on_validation_end(self, *_: Any) -> None:
        if self._started is not None:
            self._started = self._now()

    def on_train_end(self, *_: Any) -> None:
        self._read_clock()
        self._started = None

    def _log_totals(self, trainer: Any, pl_module: Any) -> None:
        pl_module.log("tokens_seen", float(trainer.global_step * self._chars_per_step))
        pl_module.log("train_seconds", self.train_seconds)

    def _now(self) -> float:
        """Return the time in seconds when the device has done all work so far."""
        synchronize(self._device)
        return time.perf_counter()

    def _read_clock(self) -> None:
        """Add the time since the clock was last read, unless it is stopped."""
        if self._started is not None:
            now = self._now()
            self.train_seconds += now - self._started
            self._started = now
