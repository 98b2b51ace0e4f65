"""What each piece of ModernGPT is worth, and what was tried and left out: `make ablation`.

Every variant trains as gpt_cpu does but for its steps, on a training split of which the last tenth
is held out; it is that slice's loss which is compared, so that the validation split stays unseen.
Results are kept in runs/ablation.json as they come: what is there is not run again.
"""

import argparse
import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from statistics import mean

import torch
from common import ROOT, SEEDS, fit, machine, markdown, mean_and_range, publish
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from lit_gpt_scratch.files import atomic_write
from lit_gpt_scratch.models.attention import AttentionFactory
from lit_gpt_scratch.models.gpt import count_parameters
from lit_gpt_scratch.models.kv_cache import KVCache
from lit_gpt_scratch.models.modern import ModernBlock, ModernGPT, SquaredReLUMLP
from lit_gpt_scratch.models.norms import rms_norm
from lit_gpt_scratch.models.rotary import RotaryAttention, apply_rope

# A corpus in tenths: eight to train on, the held-out slice, and the validation split.
SLICE = ["--data.val_fraction=0.1", "--data.test_fraction=0.1"]


class Variant(ModernGPT):
    """ModernGPT with a change made to it afterwards."""

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
        """Nothing: the network as it is."""

    def become(self, part: str, changed: type[nn.Module]) -> None:
        """Let a part of every block behave as another class that has the same weights."""
        for block in self.blocks:
            (getattr(block, part) if part else block).__class__ = changed


# Without what is there


class Unshifted(nn.Module):
    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        return x


class NoTokenShift(Variant):
    def change(self) -> None:
        self.become("attention_shift", Unshifted)
        self.become("feed_forward_shift", Unshifted)


class UnnormedAttention(RotaryAttention):
    def split(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k = (apply_rope(y.float(), start).to(v.dtype) for y in (q, k))
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class NoQKNorm(Variant):
    def change(self) -> None:
        self.become("attention", UnnormedAttention)


class UnrotatedAttention(RotaryAttention):
    def split(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k = rms_norm(q), rms_norm(k)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class LearnedPositions(Variant):
    def change(self) -> None:
        self.become("attention", UnrotatedAttention)
        self.positions = nn.Embedding(self.context, self.width)
        self.embed.register_forward_hook(lambda _, __, x: x + self.positions.weight[: x.size(1)])


class GELU(SquaredReLUMLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.gelu(self.hidden(x)))


class GELUFeedForward(Variant):
    def change(self) -> None:
        self.become("feed_forward", GELU)


class SwiGLU(SquaredReLUMLP):
    """Of the same number of parameters (Shazeer 2020)."""

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
        self.become("", LayerNormBlock)


class RandomProjections(Variant):
    def change(self) -> None:
        for name, weight in self.blocks.named_parameters():
            if name.endswith("output.weight"):
                nn.init.normal_(weight, std=0.5 / math.sqrt(weight.size(1)))


# With something more


class SoftCap(Variant):
    """Logits within 15 (Gemma Team 2024)."""

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        return 15 * torch.tanh(super().forward(ids, cache).float() / 15)


class ParallelBlock(ModernBlock):
    """Attention and feed-forward side by side (Wang and Komatsuzaki 2021)."""

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        y = self.attention_shift(rms_norm(x))
        return x + self.attention(y) + self.feed_forward(y)


class ParallelBlocks(Variant):
    def change(self) -> None:
        self.become("", ParallelBlock)


class UNetSkips(Variant):
    """Late blocks also read what early ones gave, the last the first."""

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
    """Each block reads a learned mix of the stream and the embedding."""

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
        more = self.values(self.ids).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return q, k, (v + more).to(v.dtype)


class ValueEmbeddings(Variant):
    """Values get a learned part that depends on the character alone (Zhou et al. 2024)."""

    def change(self) -> None:
        self.become("attention", AttentionWithValues)
        for block in self.blocks:
            block.attention.values = nn.Embedding(self.alphabet_size, self.width)
            nn.init.zeros_(block.attention.values.weight)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        for block in self.blocks:
            block.attention.ids = ids
        return super().forward(ids, cache)


class NGramEmbedding(Variant):
    """Characters are embedded together with the one before."""

    last, rows = 2, 1 << 13

    def change(self) -> None:
        self.grams = nn.Embedding(self.rows, self.width)
        nn.init.zeros_(self.grams.weight)
        self.embed.register_forward_hook(lambda _, inputs, x: x + self.grams(self.hash(inputs[0])))

    def hash(self, ids: Tensor) -> Tensor:
        code = torch.zeros_like(ids)
        for back in range(self.last):
            code = code * self.alphabet_size + F.pad(ids, (back, 0))[:, : ids.size(1)]
        return code * 2654435761 % self.rows if self.alphabet_size**self.last > self.rows else code


class TrigramEmbedding(NGramEmbedding):
    """Together with the two before, hashed into 16,384 rows."""

    last, rows = 3, 1 << 14


class GatedAttention(RotaryAttention):
    def head_outputs(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        gates = 2 * self.gate(self.input).sigmoid().transpose(1, 2)
        return super().head_outputs(q, k, v) * gates[..., None]

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        self.input = x
        return super().forward(x, cache)


class HeadGates(Variant):
    """Each head's output is gated by the position that reads (Qiu et al. 2025)."""

    def change(self) -> None:
        self.become("attention", GatedAttention)
        for block in self.blocks:
            block.attention.gate = nn.Linear(self.width, block.attention.heads, bias=False)
            nn.init.zeros_(block.attention.gate.weight)


MUON, ADAMW = "lit_gpt_scratch.training.Muon", "lit_gpt_scratch.training.AdamW"
COSINE = "lit_gpt_scratch.training.WarmupCosine"
# What changes: a name, and the flags that make it so.
EARNED: dict[str, list[str]] = {
    "as it is": ["--model.net=ablation.Variant"],
    "AdamW (lr 0.004) instead of Muon": [f"--model.optimizer={ADAMW}"],
    "cosine to a fiftieth instead of plateau and line": [f"--model.schedule={COSINE}"],
    "learned positions instead of rotary": ["--model.net=ablation.LearnedPositions"],
    "no token shift": ["--model.net=ablation.NoTokenShift"],
    "GELU instead of squared ReLU": ["--model.net=ablation.GELUFeedForward"],
    "SwiGLU instead of squared ReLU": ["--model.net=ablation.SwiGLUFeedForward"],
    "no QK-norm": ["--model.net=ablation.NoQKNorm"],
    "LayerNorm instead of RMSNorm": ["--model.net=ablation.LayerNorms"],
    "projections random at the start, not zero": ["--model.net=ablation.RandomProjections"],
    "1 head": ["--model.net.attention.heads=1"],
    "4 heads": ["--model.net.attention.heads=4"],
    "3 Newton-Schulz iterations": ["--model.optimizer.iterations=3"],
}
LEFT_OUT: dict[str, list[str]] = {
    "logit soft-cap": ["--model.net=ablation.SoftCap"],
    "attention and feed-forward side by side": ["--model.net=ablation.ParallelBlocks"],
    "U-net skips": ["--model.net=ablation.UNetSkips"],
    "embedding mixed into every block": ["--model.net=ablation.EmbeddingInEveryBlock"],
    "value embeddings": ["--model.net=ablation.ValueEmbeddings"],
    "head gates": ["--model.net=ablation.HeadGates"],
    "bigram embedding": ["--model.net=ablation.NGramEmbedding"],
    "trigram embedding": ["--model.net=ablation.TrigramEmbedding"],
    "weight decay 0.1": ["--model.optimizer.weight_decay=0.1"],
    "dropout 0.1": ["--model.net.dropout=0.1"],
    "weights averaged over about 20 steps": [
        "--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging",
        "--trainer.callbacks.decay=0.95",
    ],
}
VARIANTS = EARNED | LEFT_OUT
RESULTS = ROOT / "runs" / "ablation.json"
Result = tuple[float, int, float]


def run(flags: list[str], seed: int, steps: int) -> Result:
    """Loss on the held-out slice, parameters, and seconds of training."""
    args = [f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}"]
    args += ["--name=ablation", "--wandb.mode=disabled", f"--seed_everything={seed}"]
    cli = fit("gpt_cpu", *args, *SLICE, *flags)
    metrics = cli.trainer.callback_metrics
    parameters = count_parameters(cli.model.net)
    return float(metrics["val/loss"]), parameters, float(metrics["train_seconds"])


def run_all(steps: int) -> dict[str, list[Result]]:
    """Every variant's results, seed by seed; those of an earlier call are taken from its file."""
    kept: dict[str, Result] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    jobs = {
        f"{name}, {steps} steps, {seed}": (flags, seed)
        for name, flags in VARIANTS.items()
        for seed in SEEDS
    }
    # Side by side, one thread each: the losses are the same, and it is done sooner.
    with ProcessPoolExecutor(
        os.cpu_count(), get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        started = {
            pool.submit(run, *job, steps): key for key, job in jobs.items() if key not in kept
        }
        for done in tqdm(as_completed(started), "ablation", len(started), unit="run"):
            kept[started[done]] = done.result()
            with atomic_write(RESULTS) as file:
                file.write(json.dumps(kept, indent=1).encode())
    return {name: [kept[f"{name}, {steps} steps, {seed}"] for seed in SEEDS] for name in VARIANTS}


def main(args: Sequence[str] | None = None) -> None:
    """Run the ablation from the command line."""
    parser = argparse.ArgumentParser(prog="make ablation", description=__doc__)
    parser.add_argument("--steps", type=int, default=300, help="of each run (default: 300)")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md too")
    options = parser.parse_args(args)
    results = run_all(options.steps)
    base = mean(loss for loss, _, _ in results["as it is"])
    pace = mean(seconds for _, _, seconds in results["as it is"])
    rows = []
    for name, runs in results.items():
        losses, parameters, times = zip(*runs, strict=True)
        change = "" if name == "as it is" else f"{mean(losses) - base:+.4f}"
        cells = [name, mean_and_range(losses), change, f"{parameters[0]:,}"]
        verdict = "added: left out" if name in LEFT_OUT else "taken away: kept"
        rows.append([*cells, f"{mean(times) / pace:.2f}", verdict * (name != "as it is")])
    header = ["what differs", "loss on the held-out slice", "change", "parameters", "time", ""]
    about = f"{options.steps} steps, mean and range of the seeds {', '.join(map(str, SEEDS))}; time"
    about += f" of a step against the first line's, one thread each. {machine()}."
    publish("ablation", f"{markdown(header, rows)}\n\n{about}", options.readme)


if __name__ == "__main__":
    main()
