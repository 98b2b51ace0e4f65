"""AdamW, and the groups of parameters that every optimizer receives.

A factory receives what `torch.optim` calls `params`, so every optimizer of PyTorch can be used.
"""

import math
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import nn

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.private_api import allow_clipping


class OptimizerFactory(Protocol):
    """Builds an optimizer over parameter groups."""

    def __call__(self, params: Iterable[dict[str, Any]]) -> torch.optim.Optimizer: ...


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


def require_learning_rate(name: str, lr: float) -> None:
    """Raise InputError unless a learning rate is a number above 0."""
    if not 0 < lr < math.inf:
        raise InputError(f"{name} is {lr}: it must be a number above 0.")


class AdamW(torch.optim.AdamW):
    """AdamW in PyTorch's fused kernel (Loshchilov and Hutter 2019).

    Args:
        params: Parameters or parameter groups.
        lr: Learning rate.
        beta1: Decay of the running mean of gradients.
        beta2: Decay of the running mean of their squares; 0.99 suits the small batches used here.
        weight_decay: Decay of matrices; other groups have none.

    Raises:
        InputError: The learning rate is not above 0.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 4e-3,
        beta1: float = 0.9,
        beta2: float = 0.99,
        weight_decay: float = 0.1,
    ) -> None:
        require_learning_rate("lr", lr)
        super().__init__(params, lr=lr, betas=(beta1, beta2), weight_decay=weight_decay, fused=True)
        allow_clipping(self)
