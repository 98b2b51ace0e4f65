"""Networks from ids (B, T) to logits (B, T, V): bigram, one attention, and the classic GPT.

All are causal and return logits only; the Lightning module computes the loss. A network with a
residual stream has the parts `embed`, `blocks` and `unembed`, where inspection attaches its hooks.

Shapes: B batch, T positions (at most the context), C channels (the width), V alphabet size.
"""

import math
from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt_scratch.errors import require_dropout, require_positive
from lit_gpt_scratch.models.attention import AttentionFactory, FusedAttention, MultiHeadAttention
from lit_gpt_scratch.models.kv_cache import KVCache


class NetFactory(Protocol):
    """A class or function that takes an alphabet's size and a context, and returns a network.

    Other arguments, such as layers and width, are set before, for example by `functools.partial`.
    """

    def __call__(self, alphabet_size: int, context: int) -> nn.Module: ...


def init_weights(net: nn.Module, layers: int = 1) -> None:
    """Initialise a network as GPT-2 does (Radford et al. 2019, section 2.3).

    Weights are normal with standard deviation 0.02; gains of norms stay 1. The two projections per
    block that add to the residual stream (named `output`) have 0.02 / sqrt(2 * layers), so that the
    variance after the last block does not depend on the number of blocks.
    """
    for name, parameter in net.named_parameters():
        if parameter.dim() >= 2:
            adds_to_stream = name.endswith("output.weight")
            nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * layers) if adds_to_stream else 1))


class Embedding(nn.Module):
    """The sum of a learned character embedding and a learned position embedding."""

    def __init__(self, alphabet_size: int, context: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        require_positive(context=context, width=width)
        self.character = nn.Embedding(alphabet_size, width)
        self.position = nn.Embedding(context, width)
        self.dropout = dropout

    def forward(self, ids: Tensor, start: int = 0) -> Tensor:
        """Return embeddings (B, T, C) of ids (B, T); `start` is the position of the first id."""
        positions = self.position.weight[start : start + ids.size(1)]
        return F.dropout(self.character(ids) + positions, self.dropout, self.training)


class Bigram(nn.Module):
    """A table of next-character logits; each prediction depends on one character only."""

    def __init__(self, alphabet_size: int, context: int) -> None:
        super().__init__()
        require_positive(context=context)  # a bigram has no other use for it
        self.table = nn.Embedding(alphabet_size, alphabet_size)  # row i: logits after character i
        init_weights(self)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids)


class AttentionLM(nn.Module):
    """An embedding, one attention, and a linear layer to logits.

    Args:
        alphabet_size: Number of characters.
        context: Longest input.
        attention: Builds the attention.
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
        # With small logits, the first loss is near log V (4.17 for V = 65), as for random guessing.
        # All other weights keep PyTorch's defaults.
        nn.init.normal_(self.unembed.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        return self.unembed(self.attention(self.embed(ids)))


class FeedForward(nn.Module):
    """An MLP applied to each position separately; its hidden layer is four times wider."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, 4 * width, bias=False)
        self.output = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.gelu(self.hidden(x)))


class Block(nn.Module):
    """A transformer block with a norm before each of its two parts (pre-norm: Xiong et al. 2020).

    Dropout applies to what each part adds to the residual stream (here), to attention weights
    (inside the attention), and to the embedding.
    """

    def __init__(self, width: int, attention: AttentionFactory, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.attention = attention(width=width)
        self.feed_forward_norm = nn.LayerNorm(width, bias=False)
        self.feed_forward = FeedForward(width)
        self.dropout = dropout

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        normed = self.attention_norm(x)
        # An attention class need not support caches.
        attention_output = self.attention(normed, cache) if cache else self.attention(normed)
        x = x + F.dropout(attention_output, self.dropout, self.training)
        mlp_output = self.feed_forward(self.feed_forward_norm(x))
        return x + F.dropout(mlp_output, self.dropout, self.training)


class GPT(nn.Module):
    """Embedding, blocks on a residual stream, and unembedding (GPT-2: Radford et al. 2019).

    Unlike GPT-2, it has no biases, and the unembedding has a matrix of its own.

    Args:
        alphabet_size: Number of characters.
        context: Longest input.
        layers: Number of blocks.
        width: Channels of the residual stream.
        dropout: Dropout on the embedding and on the outputs of attention and MLP, in training.
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
        """Return the logits (B, T, V) of ids (B, T). With a cache, these are the new ids only."""
        x = self.embed(ids, cache.length if cache else 0)
        for block in self.blocks:
            x = block(x, cache)
        if cache:
            cache.length += ids.size(1)
        return self.unembed(x)


def count_parameters(net: nn.Module) -> int:
    """Return the number of trainable scalars."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)
