"""Ways to compute faster, measured against what the project does.

Shapes: M members, B texts of a member, T positions, C channels.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from common import Figures, median_and_range, rounds
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lit_gpt_scratch.generation.sampling import (
    SamplingSettings,
    draw,
    generate,
    next_distribution,
    uniform_numbers,
)
from lit_gpt_scratch.models import GPT, Ensemble, FusedAttention, ModernGPT, modern
from lit_gpt_scratch.runs.comparison import markdown_table
from lit_gpt_scratch.training.compilation import OPTIONS, compile_blocks

CONTEXT, MEMBERS = 256, 6
COMPILE: dict[str, Any] = {"dynamic": False, "options": OPTIONS}


def experiments(_peer: object, count: int) -> tuple[Figures, str]:
    """Ms of what the project does, and of other ways to do it; the first call compiles."""
    torch.compiler.assume_constant_result(modern.cosines_and_sines)  # type: ignore[no-untyped-call]
    parts: dict[str, dict[str, Callable[[], object]]] = {
        "forward and backward of gpt_cpu": one_network(),
        "forward and backward of six members": members(),
        "a character of one text": decoding(),
    }
    found: Figures = {}
    table = [["what", "how", "ms", "ratio", "first call, s"]]
    for what, ways in parts.items():
        first = {name: milliseconds(work) / 1000 for name, work in ways.items()}
        times = rounds(count, {name: partial(milliseconds, work) for name, work in ways.items()})
        characters = CONTEXT - 1 if "character" in what else 1
        base = median(next(iter(times.values())))
        for name, ms in times.items():
            each = [value / characters for value in ms]
            ratio = f"{median(ms) / base:.2f}"
            table.append([what, name, median_and_range(each, 2), ratio, f"{first[name]:.1f}"])
            found[f"{what}: {name}"] = each
    return found, markdown_table(table)


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start)


def randomised(net: nn.Module) -> nn.Module:
    """Give each parameter a gradient: those that start at zero get random values."""
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return net.train()


def train(network: Callable[[Tensor], Tensor], ids: Tensor) -> None:
    """Compute the loss and its gradients. ids: (B, T + 1)."""
    logits = network(ids[:, :-1])
    F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten()).backward()


def one_network() -> dict[str, Callable[[], object]]:
    ids = torch.randint(65, (16, CONTEXT + 1))
    nets = [randomised(ModernGPT(65, CONTEXT)) for _ in range(2)]
    compile_blocks(nets[1], options=OPTIONS)
    return {"eager": partial(train, nets[0], ids), "blocks compiled": partial(train, nets[1], ids)}


def members() -> dict[str, Callable[[], object]]:
    """Members one after the other, or side by side: one matrix product for all of them."""
    ids = torch.randint(65, (16 * MEMBERS, CONTEXT + 1))
    nets = [randomised(Ensemble(65, CONTEXT, ModernGPT, MEMBERS)) for _ in range(3)]
    compile_blocks(nets[1], options=OPTIONS)
    compiled = torch.compile(side_by_side, **COMPILE)
    return {
        "one after the other": partial(train, nets[0], ids),
        "one after the other, compiled": partial(train, nets[1], ids),
        "side by side": partial(train, partial(together, nets[2], side_by_side), ids),
        "side by side, compiled": partial(train, partial(together, nets[2], compiled), ids),
    }


class PlainSquaredReLU:
    """The activation of ModernGPT, without a backward pass of its own."""

    @staticmethod
    def apply(x: Tensor) -> Tensor:
        return x.relu().square()


def plain_norm(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Compute the RMSNorm of ModernGPT, without a backward pass of its own."""
    return (x * x.square().mean(-1, keepdim=True).add(1e-12).rsqrt()).to(dtype or x.dtype)


def together(ensemble: Any, run: Callable[..., Tensor], ids: Tensor) -> Tensor:
    """Return the logits of `Ensemble.train_logits`; `run` computes one block of all members."""
    nets = list(ensemble.members)
    x = torch.stack([net.embed(ids[i :: len(nets)]) for i, net in enumerate(nets)])
    # The compiler does not take a torch.autograd.Function inside vmap (pytorch/pytorch#129845).
    with patch.multiple(modern, rms_norm=plain_norm, _SquaredReLU=PlainSquaredReLU):
        for blocks in zip(*(net.blocks for net in nets), strict=True):
            x = run(blocks, x)
    logits = torch.stack([net.unembed(own) for net, own in zip(nets, x, strict=True)])
    return logits.transpose(0, 1).flatten(0, 1)


def side_by_side(blocks: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Apply block i to x[i]; x: (M, B, T, C). All blocks have parameters of the same shapes."""
    names = [name for name, _ in blocks[0].named_parameters()]
    stacked = {name: torch.stack([b.get_parameter(name) for b in blocks]) for name in names}
    return torch.vmap(lambda own, x: functional_call(blocks[0], own, (x,)))(stacked, x)


def decoding() -> dict[str, Callable[[], object]]:
    """A growing cache, and a cache of fixed size, whose step can be compiled."""
    net = GPT(65, CONTEXT, attention=partial(FusedAttention, heads=4)).eval()
    settings = SamplingSettings(max_new_tokens=CONTEXT - 1)
    prompt = torch.zeros(1, 1, dtype=torch.long)
    options = OPTIONS | {"cpp_wrapper": True}
    compiled = torch.compile(partial(static_step, net), dynamic=False, options=options)
    return {
        "growing cache": partial(generate, net, prompt, CONTEXT, settings),
        "fixed cache": partial(write, net, partial(static_step, net), settings),
        "fixed cache, compiled": partial(write, net, compiled, settings),
    }


def static_step(
    net: GPT, ids: Tensor, position: Tensor, caches: list[tuple[Tensor, Tensor]], mask: Tensor
) -> Tensor:
    """Return logits (1, V) of one character; caches have all positions, the mask hides the rest."""
    x = net.embed.character(ids) + net.embed.position.weight.index_select(0, position)
    for block, (keys, values) in zip(net.blocks, caches, strict=True):
        q, k, v = block.attention.split(block.attention_norm(x))
        keys.index_copy_(2, position, k)
        values.index_copy_(2, position, v)
        read = F.scaled_dot_product_attention(q, keys, values, mask)
        x = x + block.attention.output(read.transpose(1, 2).flatten(2))
        x = x + block.feed_forward(block.feed_forward_norm(x))
    return net.unembed(x)[:, -1]


@torch.inference_mode()
def write(net: GPT, step: Callable[..., Tensor], settings: SamplingSettings) -> Tensor:
    """Return the text that `generate` gives, (1, T), by steps with a cache of fixed size."""
    shape = 1, net.blocks[0].attention.heads, CONTEXT, 128 // net.blocks[0].attention.heads
    caches = [(torch.zeros(shape), torch.zeros(shape)) for _ in net.blocks]
    places = torch.arange(CONTEXT)
    masks = (places <= places[:, None])[:, None]  # row i: what position i may read
    uniform = uniform_numbers(settings.seed, [0], settings.max_new_tokens)
    ids = [torch.zeros(1, 1, dtype=torch.long)]
    for i in range(settings.max_new_tokens):
        logits = step(ids[-1], places[i : i + 1], caches, masks[i])
        ids.append(draw(next_distribution(logits, settings), uniform[:, i : i + 1]))
    return torch.cat(ids, dim=1)
