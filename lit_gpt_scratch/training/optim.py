"""Optimizers and schedules, built by factories over named parameter groups.

A factory receives what `torch.optim` calls `params`, so every optimizer of PyTorch fits as it is.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from lit_gpt_scratch.errors import InputError, require_positive
from lit_gpt_scratch.training.hardware import multiplies_bf16


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
        elif id(parameter) in tables or "unembed" in name.split("."):
            groups["embeddings"].append(parameter)
        else:
            groups["matrices"].append(parameter)
    decay = {"matrices": {}, "embeddings": {"weight_decay": 0.0}, "vectors": {"weight_decay": 0.0}}
    return [{"params": ps, "name": name, **decay[name]} for name, ps in groups.items() if ps]


def require_rate(name: str, lr: float) -> None:
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
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 4e-3,
        beta1: float = 0.9,
        beta2: float = 0.99,
        weight_decay: float = 0.1,
    ) -> None:
        require_rate("lr", lr)
        super().__init__(params, lr=lr, betas=(beta1, beta2), weight_decay=weight_decay, fused=True)
        # The kernel could undo a loss scale by itself, and Lightning then refuses to clip gradients
        # in mixed precision. Saying that it cannot leaves it to the scaler, where there is one.
        self._step_supports_amp_scaling = False


def is_muons(group: dict[str, Any]) -> bool:
    return group.get("name") == "matrices"


def orthogonalize(matrices: Tensor, steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The nearest matrices whose singular values are all about 1, of (N, R, C) with R <= C.

    The Newton-Schulz iteration of Jordan et al. 2024: an odd polynomial of a matrix acts on its
    singular values alone, and this one, applied five times, takes them all to 0.7 to 1.2. It needs
    matrix products only, and bf16 does.
    """
    x = matrices.to(dtype)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return x.to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Muon for the matrices and AdamW for the rest, as one optimizer.

    AdamW scales each number of a gradient by itself. Muon sees a matrix as a map: it turns the
    momentum into the nearest map that stretches all directions alike, so that rare directions
    are learned as fast as frequent ones (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon;
    equal to torch.optim.Muon, which takes one matrix after the other: here, those of one shape are
    orthogonalised together).

    Args:
        params: Parameter groups; Muon takes the one named `matrices`.
        lr: Learning rate of matrices, in units of their own scale.
        momentum: Decay of the running mean of the matrices' gradients (Nesterov's).
        weight_decay: Decay of matrices; other groups have none.
        iterations: Of Newton and Schulz.
        exact: Iterate in fp32 also where bf16 is faster: several processes then agree to 1e-6.
        adamw_lr: Learning rate of embeddings and vectors.
        beta1: Decay of the running mean of their gradients.
        beta2: Decay of the running mean of their squares.

    Raises:
        InputError: A value out of range.
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
        require_positive(iterations=iterations)
        if iterations > 100:  # the first step of a checkpoint from elsewhere would never end
            raise InputError(f"iterations is {iterations}: it must be at most 100.")
        for name, value in {"lr": lr, "adamw_lr": adamw_lr}.items():
            require_rate(name, value)
        for name, value in {"momentum": momentum, "beta1": beta1, "beta2": beta2}.items():
            if not 0 <= value < 1:
                raise InputError(f"{name} is {value}: it must be at least 0 and below 1.")
        if not 0 <= weight_decay < math.inf:
            raise InputError(f"weight_decay is {weight_decay}: it must be a number of at least 0.")
        muon = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        muon |= {"iterations": iterations, "exact": exact}
        # `fused` is also what tells a state that is loaded to lie where the parameters are.
        adamw = {"lr": adamw_lr, "weight_decay": 0.0, "betas": (beta1, beta2), "fused": True}
        own = ({**group, **(muon if is_muons(group) else adamw)} for group in params)
        super().__init__(own, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                update = self._muon if is_muons(group) else self._adamw
                update(group, params, [p.grad for p in params])
        return loss

    def _kept(self, params: list[Tensor], name: str) -> list[Tensor]:
        """A running mean of each parameter's, zero at first."""
        for p in params:
            if name not in self.state[p]:
                self.state[p][name] = torch.zeros_like(p)
        return [self.state[p][name] for p in params]

    def _muon(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        means = self._kept(params, "momentum_buffer")
        torch._foreach_lerp_(means, grads, 1 - group["momentum"])
        updates = torch._foreach_lerp(grads, means, group["momentum"])  # where it will be next
        # A tall map seen from its other side is a wide one, so that both stack.
        wide = [u.mT if u.size(0) > u.size(1) else u for u in updates]
        half = not group["exact"] and multiplies_bf16(params[0].device.type)
        dtype = torch.bfloat16 if half else torch.float32
        for shape in dict.fromkeys(w.shape for w in wide):
            members = [i for i, w in enumerate(wide) if w.shape == shape]
            stacked = orthogonalize(
                torch.stack([wide[i] for i in members]), group["iterations"], dtype
            )
            for i, update in zip(members, stacked, strict=True):
                rows, columns = params[i].shape
                # The numbers in a tall map of singular values 1 are small: it steps further.
                size = math.sqrt(max(1.0, rows / columns))
                params[i].mul_(1 - group["lr"] * group["weight_decay"])
                params[i].add_(update.mT if rows > columns else update, alpha=-group["lr"] * size)

    def _adamw(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        for p in params:
            if "step" not in self.state[p]:
                self.state[p]["step"] = torch.zeros((), device=p.device)
        adamw(
            params=params,
            grads=grads,
            exp_avgs=self._kept(params, "exp_avg"),
            exp_avg_sqs=self._kept(params, "exp_avg_sq"),
            max_exp_avg_sqs=[],
            state_steps=[self.state[p]["step"] for p in params],
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            amsgrad=False,
            maximize=False,
            fused=group["fused"],
        )


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


class WarmupStableDecay(LambdaLR):
    """Linear warm-up, a plateau, then a straight line to zero (Hägele et al. 2024).

    Args:
        optimizer: Its learning rates are the plateau's.
        steps: Optimizer steps of the whole run.
        warmup: Steps of the warm-up.
        decay: Fraction of the run that the line down takes.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, steps: int, warmup: int = 20, decay: float = 0.6
    ) -> None:
        require_positive(warmup=warmup)
        if not 0 < decay <= 1:
            raise InputError(f"decay is {decay}: it must be above 0 and at most 1.")

        def factor(step: int) -> float:
            left = max(0.0, 1 - step / max(1, steps))
            return min(1.0, (step + 1) / warmup, left / decay)

        super().__init__(optimizer, factor)
