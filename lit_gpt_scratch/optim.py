"""Optimizers and schedules, built by factories over named parameter groups.

A factory receives what `torch.optim` calls `params`, so every optimizer of PyTorch fits as it is.
"""

import math
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from lit_gpt_scratch.errors import InputError, require_positive


class OptimizerFactory(Protocol):
    """Builds an optimizer over parameter groups."""

    def __call__(self, params: Iterable[dict[str, Any]]) -> torch.optim.Optimizer: ...


class ScheduleFactory(Protocol):
    """Builds a learning-rate schedule for a run of that many optimizer steps."""

    def __call__(self, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler: ...


def parameter_groups(net: nn.Module) -> list[dict[str, Any]]:
    """The groups `matrices`, `embeddings` and `vectors` of a network's parameters.

    Weight decay pulls matrices towards doing nothing, which is what it is for. It is switched off
    for vectors (a norm's gain is not to be shrunk) and for embeddings, of which rare characters'
    rows would fade between their few updates. The unembedding counts as an embedding.
    """
    tables = {id(m.weight) for m in net.modules() if isinstance(m, nn.Embedding)}
    groups: dict[str, list[nn.Parameter]] = {"matrices": [], "embeddings": [], "vectors": []}
    for name, parameter in net.named_parameters():
        if parameter.dim() < 2:
            groups["vectors"].append(parameter)
        elif id(parameter) in tables or name.startswith("unembed"):
            groups["embeddings"].append(parameter)
        else:
            groups["matrices"].append(parameter)
    decay = {"matrices": {}, "embeddings": {"weight_decay": 0.0}, "vectors": {"weight_decay": 0.0}}
    return [{"params": ps, "name": name, **decay[name]} for name, ps in groups.items() if ps]


class AdamW(torch.optim.AdamW):
    """AdamW in PyTorch's fused kernel (Loshchilov and Hutter 2019).

    Args:
        params: Parameters or parameter groups.
        lr: Learning rate.
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
        if not 0 < lr < math.inf:
            raise InputError(f"lr is {lr}: it must be a number above 0.")
        super().__init__(params, lr=lr, betas=(beta1, beta2), weight_decay=weight_decay, fused=True)
        # The kernel could undo a loss scale by itself, and Lightning then refuses to clip gradients
        # in mixed precision. Saying that it cannot leaves it to the scaler, where there is one.
        self._step_supports_amp_scaling = False


class WarmupCosine(LambdaLR):
    """Linear warm-up, then half a cosine down to a fraction of the peak.

    Args:
        optimizer: Its learning rates are the peaks.
        steps: Optimizer steps of the whole run.
        warmup: Steps of the warm-up.
        final: Fraction of the peak that the last step ends at.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, steps: int, warmup: int = 100, final: float = 0.02
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
