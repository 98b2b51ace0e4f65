"""The networks of `make ablation`: ModernGPT with one part removed, replaced or added."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_gpt_scratch.models.attention import AttentionFactory
from lit_gpt_scratch.models.kv_cache import KVCache
from lit_gpt_scratch.models.modern import (
    ModernBlock,
    ModernGPT,
    NormedUnembedding,
    RotaryAttention,
    SquaredReLUMLP,
    apply_rope,
    rms_norm,
)
from lit_gpt_scratch.training import Muon


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


# Variants against memorising a small corpus


class TokenNoise(Variant):
    """In training, a twentieth of the input characters is replaced by random ones."""

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        if self.training:
            is_noise = torch.rand(ids.shape, device=ids.device) < 0.05
            ids = torch.where(is_noise, torch.randint_like(ids, self.alphabet_size), ids)
        return super().forward(ids, cache)


class _AddLoss(torch.autograd.Function):
    """Returns x unchanged. The backward pass adds the gradient of a loss, the second argument."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor, _loss: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad.new_ones(())


class TwoAhead(Variant):
    """In training, also predicts the character after the next (Gloeckle et al. 2024)."""

    def change(self) -> None:
        self.second = nn.ModuleDict({"unembed": NormedUnembedding(self.width, self.alphabet_size)})
        nn.init.zeros_(self.second["unembed"].character.weight)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        if not self.training or ids.size(1) < 3:
            return self.unembed(x)
        logits = self.second["unembed"](x[:, :-2]).flatten(0, 1).float()
        loss = F.cross_entropy(logits, ids[:, 2:].flatten())
        return _AddLoss.apply(self.unembed(x), 0.3 * loss)


class LoopedLate(Variant):
    """In the second half of training and after it, the two middle blocks run twice."""

    start = 350  # steps

    def change(self) -> None:
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        self.steps += self.training
        x = self.embed(ids)
        first, *middle, last = self.blocks
        for block in (first, *middle * (2 if self.steps > self.start else 1), last):
            x = block(x)
        return self.unembed(x)


class Snapshots(Variant):
    """Averages the probabilities at the end of each cycle of `Cycles` (Huang et al. 2017)."""

    def change(self) -> None:
        self.steps = 0
        self.past: list[dict[str, Tensor]] = []  # weights

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        if self.training:
            if self.steps and self.steps % Cycles.length == 0:
                self.past.append({k: w.clone() for k, w in self.state_dict().items()})
            self.steps += 1
            return super().forward(ids)
        own, found = self.state_dict(), [super().forward(ids).float().log_softmax(-1)]
        own = {name: weight.clone() for name, weight in own.items()}
        for weights in self.past:
            self.load_state_dict(weights)
            found.append(super().forward(ids).float().log_softmax(-1))
        if self.past:
            self.load_state_dict(own)
        return torch.stack(found).logsumexp(0)


class Cycles(LambdaLR):
    """A plateau and a line down to zero, again and again."""

    length, decay = 350, 0.6

    def __init__(self, optimizer: Optimizer, steps: float) -> None:
        left = lambda step: 1 - step % self.length / self.length  # noqa: E731
        super().__init__(optimizer, lambda step: min(1.0, (step + 1) / 20, left(step) / self.decay))


class NorMuon(Muon):
    """Muon whose updates have rows of about equal size over time (Li et al. 2025, 2510.05491)."""

    def _muon_step(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        before = [p * (1 - group["lr"] * group["weight_decay"]) for p in params]
        super()._muon_step(group, params, grads)
        squares = self._states("row_squares", params, lambda p: p.new_zeros(p.size(0), 1))
        for p, old, square in zip(params, before, squares, strict=True):
            update = p - old
            square.lerp_((update / max(group["lr"], 1e-12)).square().mean(1, keepdim=True), 0.05)
            equal = update / square.sqrt().clamp(min=1e-8)
            p.copy_(old + equal * (update.norm() / equal.norm().clamp(min=1e-8)))
