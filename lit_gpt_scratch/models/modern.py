"""ModernGPT: a GPT with changes published since GPT-2. `make ablation` measures each of them.

Shapes: B batch, T positions, C channels (the width), H heads, D head size (D = C / H), V alphabet
size.
"""

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lit_gpt_scratch.errors import InputError, require_dropout, require_positive
from lit_gpt_scratch.models.attention import AttentionFactory, FusedAttention
from lit_gpt_scratch.models.gpt import FeedForward
from lit_gpt_scratch.models.kv_cache import KVCache


class _RMSNorm(torch.autograd.Function):
    """A faster RMSNorm: read it as `x / x.square().mean(-1, keepdim=True).sqrt()`.

    Forward and backward take seven CPU kernels together; PyTorch's own takes a dozen.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = math.sqrt(x.size(-1)) / length.clamp_(min=1e-6)
        y = torch.mul(x, scale)
        if y.dtype != dtype:  # PyTorch 2.11 compiles a needless cast to wrong gradients
            y = y.to(dtype)
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

    The dtype defaults to autocast's: the next matrix product would convert to it anyway.
    """
    if dtype is None:
        device = x.device.type
        # Throughput counts operations on the meta device, which has no autocast.
        autocast = device != "meta" and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
    if not torch.is_grad_enabled():  # PyTorch's own forward is one kernel
        return F.rms_norm(x, x.shape[-1:], eps=1e-12).to(dtype)
    return _RMSNorm.apply(x, dtype)  # type: ignore[no-untyped-call]


class _SquaredReLU(torch.autograd.Function):
    """A faster `x.relu().square()`: its backward pass takes one CPU kernel instead of four."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.relu()
        ctx.save_for_backward(y)
        return y * y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.addcmul(y.new_zeros(()), grad, y, value=2)  # y is zero where x is negative


def rotation_angles(start: int, end: int, head_size: int, device: torch.device) -> Tensor:
    """Return angles (T, 1, D / 2) of positions start to end: p * 10000 ** (-2i / D) for pair i."""
    frequencies = 10_000.0 ** -(torch.arange(0, head_size, 2, device=device) / head_size)
    return torch.outer(torch.arange(start, end, device=device), frequencies)[:, None]


@lru_cache
@torch.inference_mode(False)  # tensors of inference mode cannot be used in training
def rotation_table(positions: int, head_size: int, device: torch.device) -> Tensor:
    """Return rotations (positions, 1, D / 2): cos(a) + j sin(a) for each angle a.

    j is the imaginary unit. Multiplication by this number rotates a pair of channels by a.
    """
    angles = rotation_angles(0, positions, head_size, device)
    return torch.polar(torch.ones_like(angles), angles)


def cosines_and_sines(start: int, end: int, head_size: int, device: torch.device) -> list[Tensor]:
    """Return the cosines and the sines of these angles, each (T, 1, D / 2), for compiled code."""
    angles = rotation_angles(start, end, head_size, device)
    return [angles.cos(), angles.sin()]


def apply_rope(x: Tensor, start: int) -> Tensor:
    """Rotate each pair of channels of x (B, T, H, D) by an angle proportional to its position.

    `start` is the position of the first vector. The dot product of a rotated query and a rotated
    key then depends on the two vectors and on the distance between their positions, but not on the
    positions themselves (RoPE: Su et al. 2021). Positions come before heads here.
    """
    end = start + x.size(1)
    pairs = x.view(*x.shape[:-1], -1, 2)
    if torch.compiler.is_compiling():  # ONNX has no complex numbers, Inductor does not fuse them
        (cos, sin), (a, b) = cosines_and_sines(start, end, x.size(-1), x.device), pairs.unbind(-1)
        return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
    # The length is rounded up to a power of two, so that few tables are computed.
    table = rotation_table(1 << (end - 1).bit_length(), x.size(-1), x.device)[start:end]
    return torch.view_as_real(torch.view_as_complex(pairs) * table).flatten(-2)


class RotaryAttention(FusedAttention):
    """Fused attention with rotary positions and QK-norm.

    QK-norm gives all queries and keys the same length, sqrt(D) (Henry et al. 2020). So each score
    lies between -sqrt(D) and sqrt(D), and scores cannot grow without limit during training. The
    head size must be even: RoPE rotates pairs.
    """

    def __init__(self, width: int, heads: int = 2, dropout: float = 0.0) -> None:
        super().__init__(width, heads, dropout)
        if width // heads % 2:
            raise InputError(f"width is {width} and heads is {heads}: width / heads must be even.")

    def split(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv(x).unflatten(-1, (3 * self.heads, -1))
        qk, v = qkv.tensor_split([2 * self.heads], dim=2)
        dtype = torch.promote_types(qk.dtype, torch.float32)  # half precision would lose the angles
        qk = apply_rope(rms_norm(qk.to(dtype), dtype), start).to(v.dtype)
        q, k = qk.chunk(2, dim=2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class TokenShift(nn.Module):
    """Replace the first half of the channels of x (B, T, C) by those of the previous position.

    Every layer then sees pairs of neighbours, at the cost of a copy (RWKV: Peng et al. 2023). The
    first position of a text gets zeros.
    """

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        first_half, second_half = x.tensor_split(2, dim=-1)
        history = cache.extend(self, first_half)[0] if cache else first_half
        if history.size(1) > x.size(1):  # the cache holds earlier positions
            previous = history[:, -x.size(1) - 1 : -1]
        else:
            previous = F.pad(first_half, (0, 0, 1, -1))
        return torch.cat((previous, second_half), dim=-1)


def drop_channels(x: Tensor, probability: float, training: bool) -> Tensor:
    """Apply dropout to whole channels of x (B, T, C), with one mask for all positions of a text.

    A shared mask works as well as one per position (Gal and Ghahramani 2016, arXiv 1512.05287) and
    needs 1/T of the random numbers, which otherwise take a fifth of a training step on a CPU.
    """
    if not (training and probability):
        return x
    return x * F.dropout(x.new_ones(x.size(0), 1, x.size(2)), probability)


class SquaredReLUMLP(FeedForward):
    """An MLP with the activation relu(x) squared (So et al. 2021)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.output(_SquaredReLU.apply(self.hidden(x)))  # type: ignore[no-untyped-call]


class ModernBlock(nn.Module):
    """Attention and an MLP; the input of each is the residual stream, normed and shifted."""

    def __init__(self, width: int, attention: AttentionFactory, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_shift, self.feed_forward_shift = TokenShift(), TokenShift()
        self.attention = attention(width=width)
        self.feed_forward = SquaredReLUMLP(width)
        self.dropout = dropout

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        shifted = self.attention_shift(rms_norm(x), cache)
        # An attention class need not support caches.
        attention_output = self.attention(shifted, cache) if cache else self.attention(shifted)
        x = x + drop_channels(attention_output, self.dropout, self.training)
        mlp_output = self.feed_forward(self.feed_forward_shift(rms_norm(x), cache))
        return x + drop_channels(mlp_output, self.dropout, self.training)


class NormedEmbedding(nn.Module):
    """A character embedding scaled to a root mean square of 1: ids (B, T) to (B, T, C)."""

    def __init__(self, alphabet_size: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.character = nn.Embedding(alphabet_size, width)
        self.dropout = dropout

    def forward(self, ids: Tensor) -> Tensor:
        x = self.character(ids)
        x = rms_norm(x, x.dtype)  # the residual stream keeps full precision under autocast
        return drop_channels(x, self.dropout, self.training)


class NormedUnembedding(nn.Module):
    """RMSNorm and a linear layer: residual stream (B, T, C) to logits (B, T, V)."""

    def __init__(self, width: int, alphabet_size: int) -> None:
        super().__init__()
        self.character = nn.Linear(width, alphabet_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.character(rms_norm(x))


class ModernGPT(nn.Module):
    """A GPT with rotary positions, RMSNorm, QK-norm, squared ReLU and token shift.

    Matrices of a block start with standard deviation 0.5 / sqrt(fan-in). The projections that add
    to the residual stream, and the unembedding, start at zero (Fixup: Zhang et al. 2019, arXiv
    1901.09321). So at the start each block returns its input unchanged. In the first step only the
    unembedding gets a gradient; then the projections become nonzero, and all other weights learn.
    These parts, with Muon to train them, are from Jordan et al. 2024,
    https://github.com/KellerJordan/modded-nanogpt.

    Args:
        alphabet_size: Number of characters.
        context: Longest input in training; no parameter depends on it.
        layers: Number of blocks.
        width: Channels of the residual stream.
        dropout: Dropout on the embedding and on the outputs of attention and MLP, in training. All
            positions of a text share one mask.
        attention: Builds the attention of a block; it has its own `heads` and `dropout`.

    Raises `InputError` for a size under 1, a dropout outside [0, 1), or heads that do not divide
    the width.
    """

    def __init__(
        self,
        alphabet_size: int,
        context: int,
        layers: int = 4,
        width: int = 128,
        dropout: float = 0.0,
        attention: AttentionFactory = RotaryAttention,
    ) -> None:
        super().__init__()
        require_positive(context=context, layers=layers, width=width)
        require_dropout(dropout)
        self.embed = NormedEmbedding(alphabet_size, width, dropout)
        self.blocks = nn.ModuleList(ModernBlock(width, attention, dropout) for _ in range(layers))
        self.unembed = NormedUnembedding(width, alphabet_size)
        for name, weight in self.blocks.named_parameters():
            if weight.dim() >= 2:
                adds_to_stream, fan_in = name.endswith("output.weight"), weight.size(1)
                nn.init.normal_(weight, std=0.0 if adds_to_stream else 0.5 / math.sqrt(fan_in))
        nn.init.zeros_(self.unembed.character.weight)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return the logits (B, T, V) of ids (B, T). With a cache, these are the new ids only."""
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, cache)
        if cache:
            cache.length += ids.size(1)
        return self.unembed(x)
