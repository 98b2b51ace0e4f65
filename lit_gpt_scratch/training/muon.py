"""Muon for matrices and AdamW for all other parameters, as one optimizer."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.private_api import (
    foreach_add_,
    foreach_lerp,
    foreach_lerp_,
    foreach_mul_,
)
from lit_gpt_scratch.training.hardware import multiplies_bf16
from lit_gpt_scratch.training.optim import require_learning_rates
from lit_gpt_scratch.training.sharding import local_parts, on_whole_matrices

MAX_ITERATIONS = 100  # more, from an untrusted checkpoint, would make a step run forever


def orthogonalize(matrices: Tensor, steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return, for matrices (N, R, C), the nearest ones with singular values near 1.

    The Newton-Schulz iteration of Jordan et al. 2024: an odd polynomial of a matrix acts on its
    singular values alone. Five steps of this one bring all of them between 0.7 and 1.2. It needs
    only matrix products, and bf16 is precise enough.
    """
    is_tall = matrices.size(1) > matrices.size(2)
    # Wide, so that the products below are small.
    x = (matrices.mT.contiguous() if is_tall else matrices).to(dtype)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    # Contiguous: on a GPU, one kernel then adds all of them to the weights.
    return (x.mT.contiguous() if is_tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Muon for the group `matrices`, AdamW for the other groups.

    AdamW scales each number of a gradient by itself. Muon treats a matrix as a linear map: it turns
    the momentum into the nearest map that stretches all directions alike, so that rare directions
    are learned as fast as frequent ones (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon). The result equals torch.optim.Muon, which takes one
    matrix at a time; this class orthogonalizes matrices of one shape together. It raises InputError
    for a value out of range.

    Args:
        params: Parameter groups; Muon takes the one named `matrices`.
        lr: Learning rate of matrices; each update has singular values near 1.
        momentum: Decay of the running mean of the matrices' gradients (Nesterov momentum).
        weight_decay: Decay of matrices; other groups have none.
        iterations: Newton-Schulz steps.
        exact: Iterate in fp32 also where bf16 is faster, so that several processes agree to 1e-6.
        adamw_lr: Learning rate of embeddings and vectors.
        beta1: Decay of the running mean of their gradients.
        beta2: Decay of the running mean of their squares.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        iterations: int = 5,
        exact: bool = False,
        adamw_lr: float = 0.01,
        beta1: float = 0.9,
        beta2: float = 0.95,
    ) -> None:
        if not 1 <= iterations <= MAX_ITERATIONS:
            raise InputError(f"iterations is {iterations}: it must be from 1 to {MAX_ITERATIONS}.")
        require_learning_rates(lr=lr, adamw_lr=adamw_lr)
        for name, value in {"momentum": momentum, "beta1": beta1, "beta2": beta2}.items():
            if not 0 <= value < 1:
                raise InputError(f"{name} is {value}: it must be at least 0 and below 1.")
        if not 0 <= weight_decay < math.inf:
            raise InputError(f"weight_decay is {weight_decay}: it must be a number of at least 0.")
        muon = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        muon |= {"iterations": iterations, "exact": exact}
        # Because of `fused`, PyTorch puts a loaded state on the device of the parameters.
        adamw = {"lr": adamw_lr, "weight_decay": 0.0, "betas": (beta1, beta2), "fused": True}
        groups = (group | (muon if group.get("name") == "matrices" else adamw) for group in params)
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                step = self._muon_step if "momentum" in group else self._adamw_step
                step(group, params, [p.grad for p in params])
        return loss

    def _states(self, name: str, params: list[Tensor], new: Any = torch.zeros_like) -> list[Tensor]:
        """Return the state `name` of each parameter; `new` makes the first, of zeros."""
        for p in params:
            if name not in self.state[p]:
                self.state[p][name] = new(p)
        return [self.state[p][name] for p in params]

    def _muon_step(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        means = self._states("momentum_buffer", params)
        rows, grads, means = map(local_parts, (params, grads, means))  # all, unless they are split
        foreach_lerp_(means, grads, 1 - group["momentum"])
        updates = foreach_lerp(grads, means, group["momentum"])  # Nesterov's look ahead
        half = not group["exact"] and multiplies_bf16(params[0].device.type)
        dtype = torch.bfloat16 if half else torch.float32
        function = partial(orthogonalize, steps=group["iterations"], dtype=dtype)
        if group["weight_decay"]:
            foreach_mul_(rows, 1 - group["lr"] * group["weight_decay"])
        for shape in dict.fromkeys(p.shape for p in params):
            height, width = shape
            members = [i for i, p in enumerate(params) if p.shape == shape]
            stacked = torch.stack([updates[i] for i in members])
            orthogonal = on_whole_matrices(function, stacked, params[members[0]])
            # Entries of a tall matrix with singular values of 1 are small: scale them up.
            scale = math.sqrt(max(1.0, height / width))
            foreach_add_([rows[i] for i in members], [*orthogonal], -group["lr"] * scale)

    def _adamw_step(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        steps = self._states("step", params, lambda p: torch.zeros((), device=p.device))
        first, second = (self._states(name, params) for name in ("exp_avg", "exp_avg_sq"))
        params, grads, first, second = map(local_parts, (params, grads, first, second))
        beta1, beta2 = group["betas"]
        settings = {name: group[name] for name in ("lr", "weight_decay", "fused")}
        adamw(
            params, grads, first, second, [], steps, beta1=beta1, beta2=beta2, eps=1e-8,
            amsgrad=False, maximize=False, **settings,
        )  # fmt: skip
