"""The networks of `make ablation`: ModernGPT with one part removed, replaced or added."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt_scratch.models.attention import AttentionFactory
from lit_gpt_scratch.models.kv_cache import KVCache
from lit_gpt_scratch.models.modern import (
    ModernBlock,
    ModernGPT,
    RotaryAttention,
    SquaredReLUMLP,
    apply_rope,
    rms_norm,
)


class Variant(ModernGPT):
    """ModernGPT that is changed after it was built; subclasses override `change`."""

    def __init__(
        self,
        alphabet_size: int,
        context: int,
        layers: int = 4,
        width: int = 128,
        dropout: float = 0.0,
        attention: AttentionFactory = RotaryAttention,
    ) -> None:
        super().__init__(alphabet_size, context, layers, width, dropout, attention)
        self.alphabet_size, self.context, self.width = alphabet_size, context, width
        self.change()

    def change(self) -> None:
        """Change the network. The base class changes nothing."""

    def replace_class(self, part: str, new_class: type[nn.Module]) -> None:
        """Give a part of every block another class, which uses the same weights."""
        for block in self.blocks:
            (getattr(block, part) if part else block).__class__ = new_class


# Variants that remove or replace a part


class NoShift(nn.Module):
    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        return x


class NoTokenShift(Variant):
    def change(self) -> None:
        self.replace_class("attention_shift", NoShift)
        self.replace_class("feed_forward_shift", NoShift)


class AttentionWithoutNorm(RotaryAttention):
    def split(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k = (apply_rope(y.float(), start).to(v.dtype) for y in (q, k))
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class NoQKNorm(Variant):
    def change(self) -> None:
        self.replace_class("attention", AttentionWithoutNorm)


class AttentionWithoutRotation(RotaryAttention):
    def split(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k = rms_norm(q), rms_norm(k)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class LearnedPositions(Variant):
    def change(self) -> None:
        self.replace_class("attention", AttentionWithoutRotation)
        self.positions = nn.Embedding(self.context, self.width)
        self.embed.register_forward_hook(lambda _, __, x: x + self.positions.weight[: x.size(1)])


class GELU(SquaredReLUMLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.gelu(self.hidden(x)))


class GELUFeedForward(Variant):
    def change(self) -> None:
        self.replace_class("feed_forward", GELU)


class SwiGLU(SquaredReLUMLP):
    """A gated MLP with about the same number of parameters (Shazeer 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        hidden = 8 * width // 3 // 16 * 16
        self.hidden = nn.Linear(width, 2 * hidden, bias=False)
        self.output = nn.Linear(hidden, width, bias=False)
        nn.init.normal_(self.hidden.weight, std=0.5 / math.sqrt(width))
        nn.init.zeros_(self.output.weight)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.hidden(x).chunk(2, dim=-1)
        return self.output(F.silu(gate) * x)


class SwiGLUFeedForward(Variant):
    def change(self) -> None:
        for block in self.blocks:
            block.feed_forward = SwiGLU(self.width)


class LayerNormBlock(ModernBlock):
    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        size = x.shape[-1:]
        x = x + self.attention(self.attention_shift(F.layer_norm(x, size)))
        return x + self.feed_forward(self.feed_forward_shift(F.layer_norm(x, size)))


class LayerNorms(Variant):
    def change(self) -> None:
        self.replace_class("", LayerNormBlock)


class RandomProjections(Variant):
    def change(self) -> None:
        for name, weight in self.blocks.named_parameters():
            if name.endswith("output.weight"):
                nn.init.normal_(weight, std=0.5 / math.sqrt(weight.size(1)))


# Variants that add a part


class SoftCap(Variant):
    """Logits limited to 15 by a tanh (Gemma Team 2024)."""

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        return 15 * torch.tanh(super().forward(ids, cache).float() / 15)


class ParallelBlock(ModernBlock):
    """Attention and MLP in parallel (Wang and Komatsuzaki 2021)."""

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        y = self.attention_shift(rms_norm(x))
        return x + self.attention(y) + self.feed_forward(y)


class ParallelBlocks(Variant):
    def change(self) -> None:
        self.replace_class("", ParallelBlock)


class UNetSkips(Variant):
    """Late blocks also get the outputs of early blocks: the last block that of the first."""

    def change(self) -> None:
        self.scales = nn.Parameter(torch.ones(len(self.blocks) // 2))

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        x, early = self.embed(ids), []
        for i, block in enumerate(self.blocks):
            if i >= len(self.blocks) // 2 and early:
                x = x + self.scales[len(early) - 1] * early.pop()
            x = block(x)
            if i < len(self.blocks) // 2:
                early.append(x)
        return self.unembed(x)


class EmbeddingInEveryBlock(Variant):
    """Each block gets a learned mix of the residual stream and the embedding."""

    def change(self) -> None:
        self.mix = nn.Parameter(torch.tensor([1.0, 0.0]).repeat(len(self.blocks), 1))

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        x = first = self.embed(ids)
        for block, (stream, embedding) in zip(self.blocks, self.mix, strict=True):
            x = block(stream * x + embedding * first)
        return self.unembed(x)


class AttentionWithValues(RotaryAttention):
    def split(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().split(x, start)
        embedded = self.values(self.ids).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return q, k, (v + embedded).to(v.dtype)


class ValueEmbeddings(Variant):
    """Values include a learned embedding of the character (Zhou et al. 2024)."""

    def change(self) -> None:
        self.replace_class("attention", AttentionWithValues)
        for block in self.blocks:
            block.attention.values = nn.Embedding(self.alphabet_size, self.width)
            nn.init.zeros_(block.attention.values.weight)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        for block in self.blocks:
            block.attention.ids = ids
        return super().forward(ids, cache)


class NGramEmbedding(Variant):
    """The embedding depends on the last two characters."""

    length, rows = 2, 1 << 13

    def change(self) -> None:
        self.grams = nn.Embedding(self.rows, self.width)
        nn.init.zeros_(self.grams.weight)
        self.embed.register_forward_hook(lambda _, inputs, x: x + self.grams(self.hash(inputs[0])))

    def hash(self, ids: Tensor) -> Tensor:
        code = torch.zeros_like(ids)
        for back in range(self.length):
            code = code * self.alphabet_size + F.pad(ids, (back, 0))[:, : ids.size(1)]
        exact = self.alphabet_size**self.length <= self.rows
        return code if exact else code * 2654435761 % self.rows


class TrigramEmbedding(NGramEmbedding):
    """The embedding depends on the last three characters, hashed into 16,384 rows."""

    length, rows = 3, 1 << 14


class GatedAttention(RotaryAttention):
    def head_outputs(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        gates = 2 * self.gate(self.input).sigmoid().transpose(1, 2)
        return super().head_outputs(q, k, v) * gates[..., None]

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        self.input = x
        return super().forward(x, cache)


class HeadGates(Variant):
    """The query's position gates the output of each head (Qiu et al. 2025)."""

    def change(self) -> None:
        self.replace_class("attention", GatedAttention)
        for block in self.blocks:
            block.attention.gate = nn.Linear(self.width, block.attention.heads, bias=False)
            nn.init.zeros_(block.attention.gate.weight)
