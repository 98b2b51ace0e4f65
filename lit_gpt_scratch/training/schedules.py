"""Learning-rate schedules: a warm-up, then a cosine, or a plateau and a straight line to zero."""

import math
from typing import Protocol

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from lit_gpt_scratch.errors import InputError, require_positive
from lit_gpt_scratch.training.optim import OptimizerFactory, parameter_groups


class ScheduleFactory(Protocol):
    """Builds a learning-rate schedule for a run of `steps` optimizer steps."""

    def __call__(self, optimizer: Optimizer, steps: int) -> LRScheduler: ...


def make_schedule(factory: ScheduleFactory, optimizer: Optimizer, max_steps: int) -> LRScheduler:
    """Build a schedule. Raise InputError if the Trainer has no fixed number of steps."""
    if max_steps < 0:
        raise InputError(
            "the learning-rate schedule needs the number of steps: give Trainer(max_steps=...), or "
            "LitCharLM(schedule=None) for a constant rate."
        )
    return factory(optimizer=optimizer, steps=max_steps)


def check_factories(
    net: nn.Module, optimizer: OptimizerFactory, schedule: ScheduleFactory | None
) -> None:
    """Build optimizer and schedule once, to raise InputError for a wrong value before training."""
    try:
        built = optimizer(params=parameter_groups(net))
        if schedule is not None:
            schedule(optimizer=built, steps=1)
    except (TypeError, ValueError) as error:
        raise InputError(f"optimizer or schedule: {error}") from error


class WarmupCosine(LambdaLR):
    """Linear warm-up, then half a cosine down to a fraction of the peak.

    Args:
        optimizer: Its learning rates are the peaks.
        steps: Optimizer steps of the whole run.
        warmup: Steps of the warm-up.
        final: Learning rate at the end, as a fraction of the peak.
    """

    def __init__(
        self, optimizer: Optimizer, steps: int, warmup: int = 100, final: float = 0.02
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
        steps: Optimizer steps of the whole run.
        warmup: Steps of the warm-up.
        decay: Fraction of the run that the line down takes.
    """

    def __init__(
        self, optimizer: Optimizer, steps: int, warmup: int = 20, decay: float = 0.6
    ) -> None:
        require_positive(warmup=warmup)
        if not 0 < decay <= 1:
            raise InputError(f"decay is {decay}: it must be above 0 and at most 1.")

        def factor(step: int) -> float:
            left = max(0.0, 1 - step / max(1, steps))
            return min(1.0, (step + 1) / warmup, left / decay)

        super().__init__(optimizer, factor)
