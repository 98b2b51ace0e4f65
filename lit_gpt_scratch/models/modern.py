"""ModernGPT: what papers since GPT-2 have changed, beside the classic one.

What is here earned its place in `make ablation`, whose table in the README has the losers too.

Shapes: B batch, T time, C channels (the width), H heads, D head size (D = C / H), V alphabet size.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt_scratch.errors import require_dropout, require_positive
from lit_gpt_scratch.models.attention import AttentionFactory, KVCache, RotaryAttention, rms_norm


class TokenShift(nn.Module):
    """Half of the channels come from the position before: x (B, T, C) to (B, T, C).

    Every layer then sees pairs of neighbours before it looks any further, for the price of a copy
    (RWKV's token shift: Peng et al. 2023).
    """

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        ours, own = x.tensor_split(2, dim=-1)
        so_far = ours if cache is None else cache.extend(self, ours)[0]
        if so_far.size(1) > x.size(1):
            before = so_far[:, -x.size(1) - 1 : -1]
        else:
            before = F.pad(ours, (0, 0, 1, -1))
        return torch.cat((before, own), dim=-1)


def drop_channels(x: Tensor, probability: float, training: bool) -> Tensor:
    """Dropout of x (B, T, C) in which a text loses a channel at all positions or at none.

    One mask for all positions (Gal and Ghahramani 2016) serves as well as one for each, and it
    needs a T-th of the random numbers, which take a fifth of a step on a CPU.
    """
    if not (training and probability):
        return x
    return x * F.dropout(x.new_ones(x.size(0), 1, x.size(2)), probability)


class SquaredReLU(nn.Module):
    """Two layers applied to each position alone, with relu(x) squared between (So et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, 4 * width, bias=False)
        self.output = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.hidden(x).relu()
        return self.output(x * x)


class ModernBlock(nn.Module):
    """Attention and a feed-forward, each reading the normed and shifted residual stream."""

    def __init__(self, width: int, attention: AttentionFactory, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_shift, self.feed_forward_shift = TokenShift(), TokenShift()
        self.attention = attention(width=width)
        self.feed_forward = SquaredReLU(width)
        self.dropout = dropout

    def forward(self, x: Tensor, *cache: KVCache) -> Tensor:
        read = self.attention(self.attention_shift(rms_norm(x), *cache), *cache)
        x = x + drop_channels(read, self.dropout, self.training)
        thought = self.feed_forward(self.feed_forward_shift(rms_norm(x), *cache))
        return x + drop_channels(thought, self.dropout, self.training)


class NormedEmbedding(nn.Module):
    """What a character is, at a root mean square of 1: ids (B, T) to (B, T, C)."""

    def __init__(self, alphabet_size: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.character = nn.Embedding(alphabet_size, width)
        self.dropout = dropout

    def forward(self, ids: Tensor) -> Tensor:
        x = self.character(ids)
        x = rms_norm(x, x.dtype)  # the residual stream is never rounded
        return drop_channels(x, self.dropout, self.training)


class NormedUnembedding(nn.Module):
    """Logits (B, T, V) of the residual stream (B, T, C)."""

    def __init__(self, width: int, alphabet_size: int) -> None:
        super().__init__()
        self.character = nn.Linear(width, alphabet_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.character(rms_norm(x))


class ModernGPT(nn.Module):
    """A GPT with rotary positions, RMSNorm, QK-norm, squared ReLU and token shift.

    Matrices start with a deviation of half of one over the root of their fan-in, but those that
    write into the residual stream, and the unembedding, at zero: the first gradients reach all
    blocks as if there were one (Zhang et al. 2019). These pieces, with Muon to train them, are
    from Jordan et al. 2024, https://github.com/KellerJordan/modded-nanogpt.

    Args:
        alphabet_size: Number of characters.
        context: Longest input; nothing in the network has that size.
        layers: Number of blocks.
        width: Channels of the residual stream.
        dropout: Probability that, in training, a text loses a channel of what joins the stream.
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
                writes = name.endswith("output.weight")
                nn.init.normal_(weight, std=0.0 if writes else 0.5 / math.sqrt(weight.size(1)))
        nn.init.zeros_(self.unembed.character.weight)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V) of ids (B, T), which follow on those that a cache holds."""
        x = self.embed(ids)
        caches = [cache] if cache else []  # an attention need not know of caches
        for block in self.blocks:
            x = block(x, *caches)
        if cache:
            cache.length += ids.size(1)
        return self.unembed(x)
