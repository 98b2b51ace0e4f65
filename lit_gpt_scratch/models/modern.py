"""ModernGPT: a GPT with improvements published since GPT-2; `make ablation` measures each of them.

Shapes: B batch, T time, C channels (the width), V alphabet size.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt_scratch.errors import require_dropout, require_positive
from lit_gpt_scratch.models.attention import AttentionFactory
from lit_gpt_scratch.models.gpt import FeedForward
from lit_gpt_scratch.models.kv_cache import KVCache
from lit_gpt_scratch.models.norms import rms_norm
from lit_gpt_scratch.models.rotary import RotaryAttention


class TokenShift(nn.Module):
    """Replace the first half of the channels of x (B, T, C) by those of the previous position.

    Every layer then sees pairs of neighbours, at the cost of a copy (RWKV: Peng et al. 2023). The
    first position of a text gets zeros.
    """

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        shifted, unshifted = x.tensor_split(2, dim=-1)
        history = cache.extend(self, shifted)[0] if cache else shifted
        if history.size(1) > x.size(1):  # the cache holds earlier positions
            previous = history[:, -x.size(1) - 1 : -1]
        else:
            previous = F.pad(shifted, (0, 0, 1, -1))
        return torch.cat((previous, unshifted), dim=-1)


def drop_channels(x: Tensor, probability: float, training: bool) -> Tensor:
    """Apply dropout to whole channels of x (B, T, C), with one mask for all positions of a text.

    A shared mask works as well as one per position (Gal and Ghahramani 2016) and needs 1/T of the
    random numbers, which otherwise take a fifth of a training step on a CPU.
    """
    if not (training and probability):
        return x
    return x * F.dropout(x.new_ones(x.size(0), 1, x.size(2)), probability)


class SquaredReLUMLP(FeedForward):
    """An MLP with the activation relu(x) squared (So et al. 2021)."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.hidden(x).relu()
        return self.output(x * x)


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
        # Without a cache, pass none: an attention class need not support caches.
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
    to the residual stream, and the unembedding, start at zero. So each block first passes its input
    on unchanged, and gradients reach all blocks with equal size (Zhang et al. 2019). These parts,
    with Muon to train them, are from Jordan et al. 2024,
    https://github.com/KellerJordan/modded-nanogpt.

    Args:
        alphabet_size: Number of characters.
        context: Longest input in training; no parameter depends on it.
        layers: Number of blocks.
        width: Channels of the residual stream.
        dropout: Dropout on the output of attention and MLP, one mask for all positions of a text.
        attention: Builds the attention of a block; it has its own `heads` and `dropout`.

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
                adds_to_stream, fan_in = name.endswith("output.weight"), weight.size(1)
                nn.init.normal_(weight, std=0.0 if adds_to_stream else 0.5 / math.sqrt(fan_in))
        nn.init.zeros_(self.unembed.character.weight)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return logits (B, T, V) of ids (B, T), which continue the text in the cache, if any."""
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, cache)
        if cache:
            cache.length += ids.size(1)
        return self.unembed(x)
