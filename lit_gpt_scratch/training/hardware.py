"""What this machine computes fast: precision, peak speed, and memory that is kept."""

import ctypes
import sys
import timeit
from typing import Literal

import torch


def multiplies_bf16(device: str) -> bool:
    """Return whether a kind of device (cpu, cuda, mps) multiplies bf16 matrices in hardware."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities()
    return device == "cpu" and bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def fastest_precision() -> Literal["bf16-mixed", "32-true"]:
    """Return bf16-mixed where hardware multiplies bf16 (2 to 4 times as fast), else 32-true."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if torch.backends.mps.is_available():
        device = "mps"
    return "bf16-mixed" if multiplies_bf16(device) else "32-true"


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
