"""Attention mechanisms, from the mean of the values so far to multi-head attention.

Every class maps x (B, T, C) to (B, T, C) and has `weights(x) -> (B, H, T, T)`: row i, column j is
the weight that position i gives to position j. Rows sum to 1; later positions have weight 0.

Shapes: B batch, T positions (keys), C channels (the width), H heads, D head size (D = C / H),
Q queries. In training Q = T. When sampling with a cache, only the new positions are queries.
"""

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt_scratch.errors import InputError, require_dropout, require_positive
from lit_gpt_scratch.models.kv_cache import KVCache


class AttentionFactory(Protocol):
    """A class or function that takes `width` and returns an attention module.

    The module's `forward(x)` may also take `cache`. If rows of its `weights` do not sum to 1, or
    are negative, as in linear or differential attention, it has `weights_sum_to_1 = False`.
    `lit-gpt-scratch check` tries all laws.
    """

    def __call__(self, width: int) -> nn.Module: ...


def has_weights(module: nn.Module) -> bool:
    """Return whether a module is an attention that shows its weights: it has a method `weights`."""
    return callable(getattr(module, "weights", None))


def shows_weights(net: nn.Module) -> bool:
    """Return whether a network has an attention that shows its weights."""
    return any(map(has_weights, net.modules()))


def causal_mask(query_count: int, key_count: int, device: torch.device) -> Tensor:
    """Return a mask (Q, T) that is True where a query may attend: to its past and to itself.

    The queries are the last Q of T positions. For Q = 2 and T = 4, the rows are 1110 and 1111.
    """
    allowed = torch.ones(query_count, key_count, dtype=torch.bool, device=device)
    return allowed.tril(key_count - query_count)


def causal_softmax(scores: Tensor) -> Tensor:
    """Turn scores (..., Q, T) into attention weights, with weight 0 for the future.

    The axis matters. dim=-1 makes the weights of each *query* sum to 1. dim=-2 would normalise over
    the queries, and then a later character could change the weights of an earlier query.
    """
    mask = causal_mask(scores.size(-2), scores.size(-1), scores.device)
    return scores.masked_fill(~mask, -math.inf).softmax(dim=-1)


class MeanAttention(nn.Module):
    """The mean of the values of this position and all earlier ones: the baseline for attention.

    A value is a linear map of a position's vector.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = nn.Linear(width, width, bias=False)

    def weights(self, x: Tensor) -> Tensor:
        return causal_softmax(x.new_zeros(x.size(0), 1, x.size(1), x.size(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.weights(x)[:, 0] @ self.value(x)  # [:, 0] removes the axis of heads


class SingleHeadAttention(nn.Module):
    """One head of scaled dot-product attention (Vaswani et al. 2017, section 3.2.1).

    If the entries of queries and keys are independent, with mean 0 and variance 1, their dot
    products have variance D. Division by sqrt(D) makes it 1. Otherwise the softmax would start with
    almost all weight on one position, and almost without gradient. With one head, D = C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)

    def weights(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(-2, -1) / math.sqrt(x.size(-1))
        return causal_softmax(scores)[:, None]  # [:, None] adds the axis of heads

    def forward(self, x: Tensor) -> Tensor:
        return self.weights(x)[:, 0] @ self.value(x)


class MultiHeadAttention(nn.Module):
    """Parallel heads, mixed by an output projection (Vaswani et al. 2017, section 3.2.2).

    Args:
        width: Channels of the input and of the output.
        heads: Number of heads; it must divide the width.
        dropout: Probability of dropping an attention weight in training.

    Raises `InputError` if the heads do not divide the width, or a value is out of range.
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
        """Return q, k, v of every head, each (B, H, Q, D), for x (B, Q, C).

        `start` is the position of the first query. Only `RotaryAttention` (modern.py) uses it.
        """
        batch, length, _ = x.shape
        # (B, Q, 3C) -> (B, Q, 3, H, D) -> (3, B, H, Q, D)
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor) -> Tensor:
        """Return the attention weights (B, H, Q, T) of queries (B, H, Q, D) over T keys."""
        return causal_softmax(q @ k.transpose(-2, -1) / math.sqrt(q.size(-1)))

    def head_outputs(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the weighted sum of the values for every query of every head, (B, H, Q, D)."""
        return F.dropout(self.attend(q, k), self.dropout, self.training) @ v

    def weights(self, x: Tensor) -> Tensor:
        q, k, _ = self.split(x)
        return self.attend(q, k)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        q, k, v = self.split(x, cache.length if cache else 0)
        if cache:
            k, v = cache.extend(self, k, v)  # the cache stores the tensors of each module
        outputs = self.head_outputs(q, k, v).transpose(1, 2).flatten(2)  # (B, Q, C)
        return self.output(outputs)


class FusedAttention(MultiHeadAttention):
    """Computes the same function as `MultiHeadAttention`, up to rounding, but faster.

    In training, dropout draws other masks.
    """

    def head_outputs(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return fused_attention(q, k, v, self.dropout if self.training else 0.0)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Compute causal attention of q (B, H, Q, D) over k and v (B, H, T, D), as fast as possible.

    PyTorch's fused kernel never stores the (Q, T) weights (FlashAttention: Dao et al. 2022).
    """
    queries, keys = q.size(-2), k.size(-2)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad:
        # In bf16 on a CPU, the kernel's backward pass is several times slower than these lines:
        # scores = future + q k^T / sqrt(D), softmax, product with v.
        batch_and_heads, scale = q.shape[:2], 1 / math.sqrt(q.size(-1))
        future = torch.full((queries, keys), -math.inf, dtype=q.dtype).triu(keys - queries + 1)
        q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
        scores = torch.baddbmm(future.expand(len(q), -1, -1), q, k.mT, alpha=scale)
        output = F.dropout(scores.softmax(dim=-1), dropout) @ v
        return output.view(*batch_and_heads, queries, -1)
    # The kernel's own mask needs Q = T; a single query needs none. In an export, sizes are symbols.
    is_causal = bool(queries == keys)
    mask = None if is_causal or queries == 1 else causal_mask(queries, keys, q.device)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
