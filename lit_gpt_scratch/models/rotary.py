"""Rotary positions (RoPE: Su et al. 2021) and attention with them; shapes as in attention.py."""

from functools import lru_cache

import torch
from torch import Tensor

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models.attention import FusedAttention
from lit_gpt_scratch.models.norms import rms_norm


@lru_cache
@torch.inference_mode(False)  # tensors of inference mode cannot be used in training
def rotation_table(positions: int, head_size: int, device: torch.device) -> Tensor:
    """Return unit complex numbers (positions, 1, D / 2): one rotation per position and pair."""
    frequencies = 10_000.0 ** -(torch.arange(0, head_size, 2, device=device) / head_size)
    angles = torch.outer(torch.arange(positions, device=device), frequencies)
    return torch.polar(torch.ones_like(angles), angles)[:, None]


def apply_rope(x: Tensor, start: int) -> Tensor:
    """Rotate each pair of channels of x (B, T, H, D) by an angle proportional to its position.

    `start` is the position of the first vector. The dot product of a rotated query and a rotated
    key then depends on the distance between their positions only.
    """
    end = start + x.size(1)
    # The length is rounded up to a power of two, so that few tables are computed.
    table = rotation_table(1 << (end - 1).bit_length(), x.size(-1), x.device)[start:end]
    pairs = torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * table).flatten(-2)


class RotaryAttention(FusedAttention):
    """Fused attention with rotary positions and QK-norm.

    QK-norm gives all queries and keys the same length (Henry et al. 2020). Scores are then bounded,
    and the softmax cannot become a hard choice. The head size must be even: RoPE rotates pairs.
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
