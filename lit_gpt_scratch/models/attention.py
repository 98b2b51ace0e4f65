"""Five ways for a position to read what came before it.

Each class maps x (B, T, C) to (B, T, C) and has `weights(x) -> (B, H, T, T)`: how much each
position (row) reads from each other one (column). Rows sum to 1; the future is never read.

Shapes: B batch, T time, R readers (the last of T positions; all of them but where a cache holds
the others), C channels (the width), H heads, D head size (D = C / H).
"""

import math
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lit_gpt_scratch.errors import InputError, require_dropout, require_positive


class AttentionFactory(Protocol):
    """Builds an attention of one width; all that it needs besides comes from its own arguments.

    Where its forward takes a `cache` as well, texts are sampled with one.
    """

    def __call__(self, width: int) -> nn.Module: ...


class KVCache:
    """What positions read so far left behind, so that a text grows without reading it all again.

    Keyed by the module that asks: no module has state, and none needs to know its layer. Buffers
    are made once, at full length.

    Args:
        capacity: Most positions that it will hold.

    Attributes:
        length: Positions that it holds; the network moves it on at the end of its forward.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._buffers: dict[nn.Module, list[Tensor]] = {}

    def extend(self, owner: nn.Module, *new: Tensor) -> list[Tensor]:
        """Keep tensors (..., T, D) of new positions; all so far of each, (..., length + T, D)."""
        if owner not in self._buffers:
            self._buffers[owner] = [
                x.new_empty(*x.shape[:-2], self.capacity, x.size(-1)) for x in new
            ]
        end = self.length + new[0].size(-2)
        assert end <= self.capacity, "the cache is full"
        for buffer, x in zip(self._buffers[owner], new, strict=True):
            buffer[..., self.length : end, :] = x
        return [buffer[..., :end, :] for buffer in self._buffers[owner]]


def causal_mask(readers: int, length: int, device: torch.device) -> Tensor:
    """Which of `length` positions the last `readers` of them read: (readers, length), no future."""
    return torch.ones(readers, length, dtype=torch.bool, device=device).tril(length - readers)


def causal_softmax(scores: Tensor) -> Tensor:
    """Softmax of scores (..., R, T) of the last R positions over their past and themselves.

    The axis matters. dim=-1 makes each *reader's* weights sum to 1; dim=-2 would normalise over the
    readers, and so let a late character change what an early one reads.
    """
    past = causal_mask(scores.size(-2), scores.size(-1), scores.device)
    return scores.masked_fill(~past, -math.inf).softmax(dim=-1)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Causal attention of q (B, H, R, D) over k and v (B, H, T, D), in the fastest way there is.

    That is PyTorch's fused kernel, which never stores the (R, T) weights (FlashAttention: Dao et
    al. 2022); but for training in bf16 on a CPU, where its backward pass takes several times as
    long as attention written out in three matrix operations.
    """
    readers, length = q.size(-2), k.size(-2)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad:
        heads, scale = q.shape[:2], 1 / math.sqrt(q.size(-1))
        future = torch.full((readers, length), -math.inf, dtype=q.dtype).triu(length - readers + 1)
        q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
        scores = torch.baddbmm(future.expand(len(q), -1, -1), q, k.mT, alpha=scale)
        read = F.dropout(scores.softmax(dim=-1), dropout) @ v
        return read.view(*heads, readers, -1)
    aligned = readers == length  # a lone last reader reads all; several last ones need a mask
    mask = None if aligned or readers == 1 else causal_mask(readers, length, q.device)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=aligned
    )


class MeanAttention(nn.Module):
    """The idea that attention replaces: every past position counts the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = nn.Linear(width, width, bias=False)

    def weights(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        return causal_softmax(x.new_zeros(batch, 1, length, length))

    def forward(self, x: Tensor) -> Tensor:
        return self.weights(x)[:, 0] @ self.value(x)


class SingleHeadAttention(nn.Module):
    """One head of scaled dot-product attention, written out (Vaswani et al. 2017, section 3.2.1).

    Queries and keys of variance 1 have dot products of variance D. Dividing by the root of D keeps
    the softmax from starting out as a hard choice of one position, where it has no gradient.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)

    def weights(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(-2, -1) / math.sqrt(x.size(-1))
        return causal_softmax(scores)[:, None]

    def forward(self, x: Tensor) -> Tensor:
        return self.weights(x)[:, 0] @ self.value(x)


class MultiHeadAttention(nn.Module):
    """Several heads side by side and an output projection that mixes them (section 3.2.2).

    Args:
        width: Channels in and out.
        heads: Number of heads; it must divide the width.
        dropout: Probability of dropping an attention weight while training.

    Raises:
        InputError: The width is not divisible by the heads, or a value is out of range.
    """

    def __init__(self, width: int, heads: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        require_positive(width=width, heads=heads)
        require_dropout(dropout)
        if width % heads:
            raise InputError(f"width is {width} and heads is {heads}: heads must divide the width.")
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def split(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of every head, each (B, H, T, D); the first is at `start`."""
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor) -> Tensor:
        """Attention weights (B, H, R, T) of the last R positions' queries over T keys."""
        return causal_softmax(q @ k.transpose(-2, -1) / math.sqrt(q.size(-1)))

    def read(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What every head gathers, (B, H, R, D)."""
        return F.dropout(self.attend(q, k), self.dropout, self.training) @ v

    def weights(self, x: Tensor) -> Tensor:
        q, k, _ = self.split(x)
        return self.attend(q, k)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        q, k, v = self.split(x, cache.length if cache else 0)
        if cache:
            k, v = cache.extend(self, k, v)
        return self.output(self.read(q, k, v).transpose(1, 2).flatten(2))


class FusedAttention(MultiHeadAttention):
    """Multi-head attention by `fused_attention`.

    Same parameters and same result as `MultiHeadAttention`, whose `weights` it keeps for looking
    inside.
    """

    def read(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return fused_attention(q, k, v, dropout)


class _RMSNorm(torch.autograd.Function):
    """PyTorch's own takes a dozen kernels on a CPU, forward and backward; this one takes seven."""

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
        # Along x itself there is nothing to gain: that would change its length, and no more.
        along = (grad * y).mean(-1, keepdim=True)
        return torch.addcmul(grad, y, along, value=-1) * scale, None


def rms_norm(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Vectors (..., C) at a root mean square of 1, without a gain (Zhang and Sennrich 2019).

    In the type asked for; by default that of autocast, which what reads them would ask for next.
    """
    if dtype is None:
        device = x.device.type
        # The meta device, where operations are only counted, has no autocast to ask for.
        autocast = device != "meta" and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
    return _RMSNorm.apply(x, dtype)  # type: ignore[no-untyped-call]


@lru_cache
@torch.inference_mode(False)  # so that training may use what a validation has made
def rotations(positions: int, size: int, device: torch.device) -> Tensor:
    """Unit complex numbers (positions, 1, size / 2) whose angles grow with the position."""
    frequencies = 10_000.0 ** -(torch.arange(0, size, 2, device=device) / size)
    angles = torch.outer(torch.arange(positions, device=device), frequencies)
    return torch.polar(torch.ones_like(angles), angles)[:, None]


def rotate(x: Tensor, start: int) -> Tensor:
    """Turn x (B, T, H, D), whose first stands at `start`, pair by pair of channels by its position.

    The dot product of two vectors then depends on their distance alone (RoPE: Su et al. 2021).
    """
    end = start + x.size(1)
    table = rotations(1 << (end - 1).bit_length(), x.size(-1), x.device)[start:end]
    pairs = torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * table).flatten(-2)


class RotaryAttention(FusedAttention):
    """Fused attention with rotary positions, and queries and keys of one length (QK-norm).

    With the lengths fixed, scores cannot grow until the softmax is a hard choice (Henry et al.
    2020).
    """

    def __init__(self, width: int, heads: int = 2, dropout: float = 0.0) -> None:
        super().__init__(width, heads, dropout)
        if width // heads % 2:
            raise InputError(
                f"width is {width} and heads is {heads}: a head must have an even size, since "
                "channels are turned in pairs."
            )

    def split(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv(x).unflatten(-1, (3 * self.heads, -1))
        qk, v = qkv.tensor_split([2 * self.heads], dim=2)
        exact = torch.promote_types(qk.dtype, torch.float32)  # angles are lost on half precision
        qk = rotate(rms_norm(qk.to(exact), exact), start).to(v.dtype)
        q, k = qk.chunk(2, dim=2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
