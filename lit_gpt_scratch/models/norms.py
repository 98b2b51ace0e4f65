"""RMSNorm, faster on a CPU than PyTorch's own."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _RMSNorm(torch.autograd.Function):
    """RMSNorm in seven CPU kernels, forward and backward together; PyTorch's needs a dozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = math.sqrt(x.size(-1)) / length.clamp_(min=1e-6)
        y = torch.mul(x, scale).to(dtype)
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        y, scale = ctx.saved_tensors
        # Scaling x does not change y, so the gradient has no component along x.
        along = (grad * y).mean(-1, keepdim=True)
        return torch.addcmul(grad, y, along, value=-1) * scale, None


def rms_norm(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Scale vectors (..., C) to a root mean square of 1, without a gain (Zhang and Sennrich 2019).

    The dtype defaults to autocast's: the next matrix product would cast to it anyway.
    """
    if dtype is None:
        device = x.device.type
        # Throughput counts operations on the meta device, which has no autocast.
        autocast = device != "meta" and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
    return _RMSNorm.apply(x, dtype)  # type: ignore[no-untyped-call]
