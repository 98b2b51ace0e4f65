"""What devices can do: precision, peak speed, memory that is kept, and what MPS lacks."""

import contextlib
import ctypes
import os
import sys
import timeit
from collections.abc import Iterator
from typing import Any, Literal

import torch
from lightning.pytorch.accelerators import MPSAccelerator
from torch import nn

from lit_gpt_scratch.generation.sampling import one_thread
from lit_gpt_scratch.models import count_parameters
from lit_gpt_scratch.training.distributed import is_rank_zero

# What MPS, the GPU of a Mac, lacks; what is used instead, and why.
MPS_LACKS = {
    "--trainer.precision 64-true": ("32-true", "it has no 64-bit numbers"),
    "--model.compile true": ("false", "torch.compile is unfinished (pytorch/pytorch#150121)"),
}

CPU = torch.device("cpu")

# Parameters times characters of a batch. The rung `transformer` has 4 million; `gpt_cpu_short`, the
# smallest network that is trained on all cores, has 600 million. This lies between, as a ratio.
SMALL = 50_000_000


def kind_of_device(accelerator: object = "auto") -> str:
    """Return the kind of device (cpu, cuda, mps) that Lightning chooses for an accelerator."""
    if accelerator in ("auto", "gpu", "mps") and MPSAccelerator.is_available():
        return "mps"
    is_cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "cuda" if is_cuda else "cpu"


def supported(device: str, flag: str, value: str) -> str:
    """Return the value if the kind of device supports it; else print a notice, return another."""
    wish = f"{flag} {value}"
    if device != "mps" or wish not in MPS_LACKS:
        return value
    used, reason = MPS_LACKS[wish]
    if is_rank_zero():
        print(f"Notice: {wish} is replaced by {used}. MPS lacks it: {reason}.", file=sys.stderr)
    return used


def seed_device(device: torch.device, seed: int) -> None:
    """Seed the generator of one device; torch.manual_seed seeds all, and is 100 times slower."""
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def multiplies_bf16(device: str) -> bool:
    """Return whether a kind of device (cpu, cuda, mps) multiplies bf16 matrices in hardware."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities()
    return device == "cpu" and bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def fastest_precision() -> Literal["bf16-mixed", "32-true"]:
    """Return bf16-mixed where hardware multiplies bf16 (2 to 4 times as fast), else 32-true."""
    return "bf16-mixed" if multiplies_bf16(kind_of_device()) else "32-true"


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all its work: a GPU computes while the program goes on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def measured_flops(
    dtype: torch.dtype, size: int | None = None, device: torch.device = CPU
) -> float:
    """Estimate the peak of a device, in floating-point operations per second.

    This is the speed of the fastest of six products of square matrices, (size, size). By default,
    they are large enough to keep all of the device busy.
    """
    size = size or (768 if device.type == "cpu" else 4096)
    a = torch.ones(size, size, dtype=dtype, device=device)

    def multiply() -> None:
        torch.matmul(a, a)
        synchronize(device)

    return 2 * size**3 / min(timeit.repeat(multiply, number=1, repeat=6))


def is_small(net: nn.Module, characters: int) -> bool:
    """Return whether one thread trains a network with batches of this size best."""
    return count_parameters(net) * characters < SMALL


@contextlib.contextmanager
def one_thread_if_small(trainer: Any, net: nn.Module, characters: int) -> Iterator[None]:
    """In this `with` block, train a small network on one thread of the CPU; say so.

    Threads of a small network wait for each other longer than they compute, above all if other
    programs run: then a second thread can make it 10 to 100 times slower. Small means: parameters
    times characters of a batch are under `SMALL`. The number of threads stays as it is if the user
    has set it by OMP_NUM_THREADS, and where several processes train, since Lightning sets it there.
    """
    threads, is_cpu = torch.get_num_threads(), trainer.strategy.root_device.type == "cpu"
    is_free = is_cpu and trainer.world_size == 1 and "OMP_NUM_THREADS" not in os.environ
    if not is_free or threads == 1 or not is_small(net, characters):
        yield
        return
    print(f"threads      1 of {threads}: the network is small", file=sys.stderr)
    with one_thread():
        yield


def keep_freed_memory() -> None:
    """Stop glibc from returning freed memory to the system after each step.

    Otherwise the system clears every page that the next step asks for; this saves about 10 percent
    of a CPU step.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # other C libraries lack it
            trim_threshold, mmap_threshold = -1, -3  # constants of malloc.h
            libc.mallopt(mmap_threshold, 32 << 20)  # the largest value that glibc accepts
            libc.mallopt(trim_threshold, 1 << 30)
