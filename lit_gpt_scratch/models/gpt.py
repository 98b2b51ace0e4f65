"""The rungs of the ladder: networks from ids (B, T) to logits (B, T, V), always causal.

A network returns logits and nothing else; the loss lives in the Lightning module's step. Those with
a residual stream have `embed`, `blocks` and `unembed`, so that one can look into it from outside.

Shapes: B batch, T time (at most the context), C channels (the width), V alphabet size.
"""

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt_scratch.errors import InputError, require_dropout, require_positive
from lit_gpt_scratch.models.attention import (
    AttentionFactory,
    FusedAttention,
    KVCache,
    MultiHeadAttention,
)


class NetFactory(Protocol):
    """Builds a network for an alphabet and a context; its size comes from its own arguments."""

    def __call__(self, alphabet_size: int, context: int) -> nn.Module: ...


def init_weights(net: nn.Module, layers: int = 1) -> None:
    """The GPT's initialisation rule, GPT-2's (Radford et al. 2019, section 2.3).

    Matrices and embeddings are normal with deviation 0.02. Projections named `output`, the two in a
    block that write into the residual stream, are narrower by the root of 2 * layers, so that the
    stream's variance at the end does not grow with depth. Norms keep PyTorch's ones.
    """
    for name, parameter in net.named_parameters():
        if parameter.dim() >= 2:
            writes = name.endswith("output.weight")
            nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * layers) if writes else 1.0))


class Embedding(nn.Module):
    """The sum of what a character is and where it stands: ids (B, T) to (B, T, C)."""

    def __init__(self, alphabet_size: int, context: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        require_positive(context=context, width=width)
        self.character = nn.Embedding(alphabet_size, width)
        self.position = nn.Embedding(context, width)
        self.dropout = dropout

    def forward(self, ids: Tensor, start: int = 0) -> Tensor:
        """Of characters whose first stands at position `start`."""
        positions = self.position.weight[start : start + ids.size(1)]
        return F.dropout(self.character(ids) + positions, self.dropout, self.training)


class Bigram(nn.Module):
    """A table of next-character logits: it sees one character and nothing else."""

    def __init__(self, alphabet_size: int, context: int) -> None:
        super().__init__()
        require_positive(context=context)
        self.table = nn.Embedding(alphabet_size, alphabet_size)
        init_weights(self)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids)


class AttentionLM(nn.Module):
    """One attention between embedding and logits, and nothing around it.

    Args:
        alphabet_size: Number of characters.
        context: Longest input.
        attention: What a position reads from the past.
        width: Channels of the embedding.
    """

    def __init__(
        self,
        alphabet_size: int,
        context: int,
        attention: AttentionFactory = MultiHeadAttention,
        width: int = 32,
    ) -> None:
        super().__init__()
        self.embed = Embedding(alphabet_size, context, width)
        self.attention = attention(width=width)
        self.unembed = nn.Linear(width, alphabet_size)
        # All else starts as PyTorch does it; small logits put the first loss near log V.
        nn.init.normal_(self.unembed.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        return self.unembed(self.attention(self.embed(ids)))


class FeedForward(nn.Module):
    """Two layers applied to each position alone; the hidden one is four times wider."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, 4 * width, bias=False)
        self.output = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.gelu(self.hidden(x)))


class Block(nn.Module):
    """A transformer block with the norms before its two parts (pre-norm: Xiong et al. 2020).

    Dropout falls on what each part adds to the residual stream, here; on the attention weights,
    inside the attention; and, once, on the embedding, in `GPT`.
    """

    def __init__(self, width: int, attention: AttentionFactory, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.attention = attention(width=width)
        self.feed_forward_norm = nn.LayerNorm(width, bias=False)
        self.feed_forward = FeedForward(width)
        self.dropout = dropout

    def forward(self, x: Tensor, *cache: KVCache) -> Tensor:
        read = self.attention(self.attention_norm(x), *cache)
        x = x + F.dropout(read, self.dropout, self.training)
        thought = self.feed_forward(self.feed_forward_norm(x))
        return x + F.dropout(thought, self.dropout, self.training)


class GPT(nn.Module):
    """Blocks on a residual stream (Radford et al. 2019).

    Args:
        alphabet_size: Number of characters.
        context: Longest input.
        layers: Number of blocks.
        width: Channels of the residual stream.
        dropout: Probability of dropping a channel of what is added to the stream, while training.
        attention: What a position reads from the past; it has its own `heads` and `dropout`.

    Raises:
        InputError: A size under 1, a dropout outside [0, 1), or heads that do not divide the width.
    """

    def __init__(
        self,
        alphabet_size: int,
        context: int,
        layers: int = 4,
        width: int = 128,
        dropout: float = 0.0,
        attention: AttentionFactory = FusedAttention,
    ) -> None:
        super().__init__()
        require_positive(layers=layers, width=width)
        require_dropout(dropout)
        self.embed = Embedding(alphabet_size, context, width, dropout)
        self.blocks = nn.ModuleList(Block(width, attention, dropout) for _ in range(layers))
        self.unembed = nn.Sequential(
            nn.LayerNorm(width, bias=False), nn.Linear(width, alphabet_size, bias=False)
        )
        init_weights(self, layers)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V) of ids (B, T), which follow on those that a cache holds."""
        x = self.embed(ids, cache.length if cache else 0)
        caches = [cache] if cache else []  # an attention need not know of caches
        for block in self.blocks:
            x = block(x, *caches)
        if cache:
            cache.length += ids.size(1)
        return self.unembed(x)


class Ensemble(nn.Module):
    """Several networks that learn apart and are asked together (Lakshminarayanan et al. 2017).

    While training, text i of a batch is for member i modulo their number alone. Otherwise every
    member reads every text, and the logits are the logarithm of the mean of their probabilities.
    Networks that know a small corpus by heart err each in its own way, so that the mean is better
    than any of them (Kim et al. 2025).

    Args:
        alphabet_size: Number of characters.
        context: Longest input.
        net: A member.
        size: Number of members.

    Raises:
        InputError: No members, or a batch of fewer texts than members to learn from.
    """

    def __init__(
        self, alphabet_size: int, context: int, net: NetFactory = GPT, size: int = 4
    ) -> None:
        super().__init__()
        require_positive(size=size)
        self.members = nn.ModuleList(
            net(alphabet_size=alphabet_size, context=context) for _ in range(size)
        )

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V) of ids (B, T), which follow on those that a cache holds."""
        return self.apart(ids) if self.training else self.together(ids, cache)

    def apart(self, ids: Tensor) -> Tensor:
        """Logits (B, T, V), each text's from its own member."""
        size = len(self.members)
        if len(ids) < size:
            raise InputError(
                f"{size} members cannot share a batch of {len(ids)}: give a larger "
                "--data.batch_size."
            )
        shares = [member(ids[i::size]).unbind() for i, member in enumerate(self.members)]
        return torch.stack([shares[i % size][i // size] for i in range(len(ids))])

    def together(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V), every text's from all members: log-probabilities."""
        caches, start = ([cache], cache.length) if cache else ([], 0)
        guesses = []
        for member in self.members:
            if cache:
                cache.length = start  # where each of them found it
            guesses.append(member(ids, *caches).float().log_softmax(-1))
        return torch.stack(guesses).logsumexp(0) - math.log(len(guesses))


def count_parameters(net: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)
