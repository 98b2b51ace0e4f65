"""The parts of `make gpu` that look inside a process, and a callback that `fit` gets by a flag."""

import contextlib
import copy
import json
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import lightning
import numpy
import torch
import torchmetrics
from common import CONFIGS
from lightning.fabric.utilities.throughput import get_available_flops, measure_flops
from lightning.pytorch.callbacks import Callback
from peak_memory import peak_memory
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt_scratch.checkpoints.network import build
from lit_gpt_scratch.cli.compare import machine
from lit_gpt_scratch.files import atomic_write
from lit_gpt_scratch.generation import SamplingSettings
from lit_gpt_scratch.generation.sampling import generate
from lit_gpt_scratch.inspection.laws import random_ids, with_random_weights
from lit_gpt_scratch.runs.folder import read_mapping
from lit_gpt_scratch.training.compilation import compile_blocks

if TYPE_CHECKING:
    from gpu import Work

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ALPHABET = 65  # characters of Tiny Shakespeare
TEXTS = 12  # in a batch: one for each member of gpt_gpu
SMOKE_SIZES = {"layers": 1, "width": 16, "heads": 2, "size": 2}
FIRST = ("gpt", "gpt_gpu", "gpt_cpu")  # the configs whose numbers matter most


class Probe(Callback):
    """Writes probe.json into the run's folder: operations, seconds of the first step, peak memory.

    The memory is that of the GPU or, on a CPU, all of the process.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Count the operations of a step, as Throughput does, before the network is compiled."""
        data = trainer.datamodule
        ids = torch.zeros(data.batch_size, data.context, dtype=torch.long, device="meta")
        net = copy.deepcopy(pl_module.net).to("meta").train()
        operations = measure_flops(net, lambda: net(ids), torch.Tensor.sum)
        self.found = {"TFLOP a step": operations / 1e12}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.folder = Path(trainer.checkpoint_callback.dirpath).parent
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if "first step, s" not in self.found:
            synchronize()
            self.found["first step, s"] = time.perf_counter() - self.start

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        is_cuda = DEVICE.type == "cuda"
        peak = torch.cuda.max_memory_allocated() if is_cuda else 1024 * peak_memory()
        self.found["peak memory, GB"] = peak / 1e9
        with atomic_write(self.folder / "probe.json") as file:
            file.write(json.dumps(self.found).encode())


def synchronize() -> None:
    """Wait until the GPU, if there is one, has done its work."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def timed(call: Callable[[], object], repeats: int = 1) -> float:
    """Return the seconds of a call: the median of three stretches of them."""
    spent = []
    for _ in range(4):  # the first is the warm-up
        synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        synchronize()
        spent.append((time.perf_counter() - start) / repeats)
    return median(spent[1:])


def environment(work: "Work") -> None:
    """Say what the machine has, and what it can do at most."""
    work.say("machine", machine())
    work.say("Python", platform.python_version())
    for module in (lightning, torchmetrics, numpy):
        work.say(module.__name__, module.__version__)
    if DEVICE.type == "cuda":
        work.say("CUDA, cuDNN", f"{torch.version.cuda}, {torch.backends.cudnn.version()}")
        peak = get_available_flops(torch.device("cuda", 0), torch.bfloat16)
        work.say("TFLOP/s in bf16 by Lightning's table", peak / 1e12 if peak else "unknown")
        ask = ["nvidia-smi", "--query-gpu=driver_version,memory.total,power.limit"]
        with contextlib.suppress(OSError):
            found = subprocess.run([*ask, "--format=csv,noheader"], capture_output=True, text=True)
            work.say("driver, memory, power limit", found.stdout.strip())
    size, repeats = (256, 2) if work.smoke else (8192, 10)
    one, other = (torch.randn(size, size, device=DEVICE) for _ in range(2))
    work.say("copy, GB/s", 2 * one.nbytes / timed(lambda: one.copy_(other), repeats) / 1e9)
    for dtype in (torch.float32, torch.bfloat16):
        matrix = one.to(dtype)
        seconds = timed(lambda x=matrix: x @ x, repeats)
        work.say(f"matrix product in {str(dtype)[6:]}, TFLOP/s", 2 * size**3 / seconds / 1e12)
    few = torch.zeros(16, device=DEVICE)
    work.say("time of a small operation, us", 1e6 * timed(lambda: few.add_(1), 1000))


def network(work: "Work", config: str) -> tuple[nn.Module, Tensor]:
    """Return a config's network, with random weights and no dropout, and ids for it (B, T + 1)."""
    changes = {"dropout": 0.0} | (SMOKE_SIZES if work.smoke else {})

    def change(settings: dict[str, Any]) -> dict[str, Any]:
        return {
            name: change(value) if isinstance(value, dict) else changes.get(name, value)
            for name, value in settings.items()
        }

    settings = read_mapping(CONFIGS / f"{config}.yaml")
    context = 16 if work.smoke else settings["data"]["context"]
    net = build(change(settings["model"]["net"]))(alphabet_size=ALPHABET, context=context)
    return with_random_weights(net), random_ids(ALPHABET, TEXTS, context + 1)


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over the norm of what is expected."""
    found, expected = found.cpu().double(), expected.cpu().double()
    return float((found - expected).norm() / expected.norm())


@torch.no_grad()
def compare_logits(work: "Work", config: str) -> None:
    """Say how far the logits of the GPU are from those of the CPU, and bf16 from fp32."""
    net, ids = network(work, config)
    ids = ids[:, :-1]
    expected = net(ids)
    net, ids = net.to(DEVICE), ids.to(DEVICE)
    logits = net(ids)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        half = net(ids).float()
    apart = float((logits.cpu() - expected).abs().max())
    work.say(f"{config}: fp32 logits, GPU minus CPU, largest", apart)
    work.say(f"{config}: bf16 logits minus fp32, relative", relative(half, logits))


def compare_gradients(work: "Work", config: str) -> None:
    """Say how far compiled gradients are from eager ones, in the precision of the config."""
    net, ids = (part.to(DEVICE) for part in network(work, config))
    trainer = read_mapping(CONFIGS / f"{config}.yaml")["trainer"]
    precision = trainer.get("precision", "bf16-mixed")  # the default on a GPU
    found = []
    torch.compiler.reset()  # it compiles a class for a few shapes only
    for is_compiled in (False, True):
        tried = copy.deepcopy(net).train()
        if is_compiled:
            compile_blocks(tried, **({"backend": "aot_eager"} if work.smoke else {}))
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled="bf16" in precision):
            logits = tried(ids[:, :-1])
        F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten()).backward()
        found.append(torch.cat([p.grad.flatten() for p in tried.parameters()]))
    eager, compiled = found
    work.say(f"{config}: compiled gradients minus eager, relative", relative(compiled, eager))


def numerics(work: "Work") -> None:
    """Compare the numbers of all networks, or of as many as there is time for."""
    others = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in FIRST)
    for compare in (compare_logits, compare_gradients):  # the second compiles, which takes long
        for config in FIRST if work.smoke else (*FIRST, *others):
            if work.left:
                compare(work, config)
            else:
                work.say(f"{config}: {compare.__name__}", "no time was left")


def generation(work: "Work") -> None:
    """Say how many characters a second are generated."""
    context = 16 if work.smoke else 256
    settings = SamplingSettings(max_new_tokens=context - 1)
    writers: dict[str, Callable[[Tensor], object]] = {}
    for config in ("gpt_cpu", "gpt"):
        net = network(work, config)[0].to(DEVICE)
        writers[config] = lambda prompt, net=net: generate(net, prompt, context, settings)
    if work.nanogpt:
        peer = work.open_nanogpt().net(context, layers=4, heads=4, width=128).to(DEVICE)
        writers["nanoGPT, as large as gpt_cpu"] = lambda ids: peer.generate(ids, context - 1)
    for name, write in writers.items():
        for texts in (1, 64):
            prompt = torch.zeros(texts, 1, dtype=torch.long, device=DEVICE)
            seconds = timed(lambda write=write, prompt=prompt: write(prompt))
            work.say(f"{name}: {texts} texts, characters/s", texts * (context - 1) / seconds)
