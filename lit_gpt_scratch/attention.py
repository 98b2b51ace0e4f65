"""Four ways for a position to read what came before it.

Each class maps x (B, T, C) to (B, T, C) and has `weights(x) -> (B, H, T, T)`: how much each
position (row) reads from each other one (column). Rows sum to 1; the future is never read.

Shapes: B batch, T time, C channels (the width), H heads, D head size (D = C / H).
"""

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt_scratch.errors import InputError, require_dropout, require_positive


class AttentionFactory(Protocol):
    """Builds an attention of one width; all that it needs besides comes from its own arguments."""

    def __call__(self, width: int) -> nn.Module: ...


def causal_softmax(scores: Tensor) -> Tensor:
    """Softmax of scores (..., T, T) over the past: position t reads positions 0..t.

    The axis matters. dim=-1 makes each *reader's* weights sum to 1; dim=-2 would normalise over the
    readers, and so let a late character change what an early one reads.
    """
    length = scores.size(-1)
    past = torch.ones(length, length, dtype=torch.bool, device=scores.device).tril()
    return scores.masked_fill(~past, -math.inf).softmax(dim=-1)


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

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of every head, each (B, H, T, D)."""
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor) -> Tensor:
        """Attention weights (B, H, T, T) of queries over keys."""
        return causal_softmax(q @ k.transpose(-2, -1) / math.sqrt(q.size(-1)))

    def read(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What every head gathers, (B, H, T, D)."""
        return F.dropout(self.attend(q, k), self.dropout, self.training) @ v

    def weights(self, x: Tensor) -> Tensor:
        q, k, _ = self.split(x)
        return self.attend(q, k)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.read(*self.split(x)).transpose(1, 2).flatten(2))


class FusedAttention(MultiHeadAttention):
    """Multi-head attention in PyTorch's fused kernel, which never stores the (T, T) weights.

    Same parameters and same result as `MultiHeadAttention`, whose `weights` it keeps for looking
    inside (FlashAttention: Dao et al. 2022).
    """

    def read(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
