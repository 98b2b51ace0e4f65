"""AdamW, learning-rate schedules, and the groups of parameters that every optimizer receives.

A factory receives what `torch.optim` calls `params`, so every optimizer of PyTorch can be used.
"""

import math
import sys
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from lit_gpt_scratch.errors import InputError, is_bug, require_positive
from lit_gpt_scratch.private_api import allow_clipping
from lit_gpt_scratch.training.distributed import is_rank_zero


class OptimizerFactory(Protocol):
    """Builds an optimizer over parameter groups."""

    def __call__(self, params: Iterable[dict[str, Any]]) -> Optimizer: ...


class ScheduleFactory(Protocol):
    """Builds a learning-rate schedule for a run of `steps` optimizer steps; math.inf: unknown."""

    def __call__(self, optimizer: Optimizer, steps: float) -> LRScheduler: ...


def parameter_groups(net: nn.Module) -> list[dict[str, Any]]:
    """Sort a network's parameters into the groups `matrices`, `embeddings` and `vectors`.

    Only matrices have weight decay. Vectors have none, because decay would shrink the gain of a
    norm. Embeddings have none, because the rows of rare characters would fade between their few
    updates. The unembedding counts as an embedding.
    """
    embeddings = {id(m.weight) for m in net.modules() if isinstance(m, nn.Embedding)}
    groups: dict[str, list[nn.Parameter]] = {"matrices": [], "embeddings": [], "vectors": []}
    for name, parameter in net.named_parameters():
        if parameter.dim() < 2:
            groups["vectors"].append(parameter)
        elif id(parameter) in embeddings or "unembed" in name.split("."):
            groups["embeddings"].append(parameter)
        else:
            groups["matrices"].append(parameter)
    decay = {"matrices": {}, "embeddings": {"weight_decay": 0.0}, "vectors": {"weight_decay": 0.0}}
    return [{"params": ps, "name": name, **decay[name]} for name, ps in groups.items() if ps]


def build_optimizer(
    net: nn.Module, optimizer: OptimizerFactory, schedule: ScheduleFactory | None, steps: float
) -> OptimizerLRScheduler:
    """Build a network's optimizer and schedule for a run of `steps`, in Lightning's form.

    Raise InputError for a wrong value.
    """
    if schedule and math.isinf(steps) and is_rank_zero():
        notice = "Notice: the number of steps is unknown: the learning rate does not fall."
        print(notice, file=sys.stderr)
    try:
        built = optimizer(params=parameter_groups(net))
        if schedule is None:
            return built
        scheduler = schedule(optimizer=built, steps=steps)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        if is_bug(error, "training"):
            raise
        raise InputError(f"optimizer or schedule: {error}") from error
    return {"optimizer": built, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def require_learning_rates(**rates: float) -> None:
    """Raise InputError unless all learning rates are numbers above 0."""
    for name, lr in rates.items():
        if not 0 < lr < math.inf:
            raise InputError(f"{name} is {lr}: it must be a number above 0.")


class AdamW(torch.optim.AdamW):
    """AdamW in PyTorch's fused kernel (Loshchilov and Hutter 2019).

    Args:
        params: Parameters or parameter groups.
        lr: Learning rate; it must be above 0.
        beta1: Decay of the running mean of gradients.
        beta2: Decay of the running mean of their squares; 0.99 suits the small batches used here.
        weight_decay: Decay of matrices; other groups have none.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 4e-3,
        beta1: float = 0.9,
        beta2: float = 0.99,
        weight_decay: float = 0.1,
    ) -> None:
        require_learning_rates(lr=lr)
        super().__init__(params, lr=lr, betas=(beta1, beta2), weight_decay=weight_decay, fused=True)
        allow_clipping(self)


class WarmupCosine(LambdaLR):
    """Linear warm-up, then half a cosine down to a fraction of the peak.

    Args:
        optimizer: Its learning rates are the peaks.
        steps: Optimizer steps of the whole run. If they are infinite, the peak stays.
        warmup: Steps of the warm-up.
        final: Learning rate at the end, as a fraction of the peak.
    """

    def __init__(
        self, optimizer: Optimizer, steps: float, warmup: int = 100, final: float = 0.02
    ) -> None:
        require_positive(warmup=warmup)
        if not 0 <= final <= 1:
            raise InputError(f"final is {final}: it must be from 0 to 1.")

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            done = min(1.0, (step - warmup) / max(1, steps - warmup))
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))

        super().__init__(optimizer, factor)


class WarmupStableDecay(LambdaLR):
    """Linear warm-up, a plateau, then a straight line to zero (Hägele et al. 2024).

    Args:
        optimizer: Its learning rates are the plateau's.
        steps: Optimizer steps of the whole run. If they are infinite, the plateau stays.
        warmup: Steps of the warm-up.
        decay: Fraction of the run that the line down takes.
    """

    def __init__(
        self, optimizer: Optimizer, steps: float, warmup: int = 20, decay: float = 0.6
    ) -> None:
        require_positive(warmup=warmup)
        if not 0 < decay <= 1:
            raise InputError(f"decay is {decay}: it must be above 0 and at most 1.")

        def factor(step: int) -> float:
            left = max(0.0, 1 - step / max(1, steps))
            return min(1.0, (step + 1) / warmup, left / decay)

        super().__init__(optimizer, factor)
