"""What devices can do: precision, peak speed, memory that is kept, and what MPS lacks."""

import ctypes
import sys
import timeit
from typing import Literal

import torch
from lightning.pytorch.accelerators import MPSAccelerator

from lit_gpt_scratch.training.distributed import is_rank_zero

# What MPS, the GPU of a Mac, lacks; what is used instead, and why.
MPS_LACKS = {
    "--trainer.precision 64-true": ("32-true", "it has no 64-bit numbers"),
    "--model.compile true": ("false", "torch.compile is unfinished (pytorch/pytorch#150121)"),
}


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


def measured_flops(dtype: torch.dtype, size: int = 768) -> float:
    """Estimate the CPU's peak, in floating-point operations per second.

    This is the speed of the fastest of six products of square matrices.
    """
    a = torch.ones(size, size, dtype=dtype)
    seconds = min(timeit.repeat(lambda: a @ a, number=1, repeat=6))
    return 2 * size**3 / seconds


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
