"""What the machine at hand does fast."""

import ctypes
import sys
import time
from typing import Literal

import torch

Precision = Literal["bf16-mixed", "32-true"]


def multiplies_bf16(device: str) -> bool:
    """Whether a kind of device (cpu, cuda, mps) multiplies bf16 matrices in hardware."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities()
    return device == "cpu" and bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def fastest_precision() -> Precision:
    """bf16 for matrix products (2 to 4 times as fast) where there is hardware for it, else fp32."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if torch.backends.mps.is_available():
        device = "mps"
    return "bf16-mixed" if multiplies_bf16(device) else "32-true"


def measured_flops(dtype: torch.dtype, size: int = 768) -> float:
    """Floating-point operations a second of the CPU in a product of two square matrices.

    The best of five, after one that warms up: what a makers' data sheet would say, found out.
    """
    a = torch.ones(size, size, dtype=dtype)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times[1:])


def keep_freed_memory() -> None:
    """Let the C library keep what training frees at each step, and takes again at the next.

    By default glibc gives large blocks back to the system at once, and each page that it asks for
    anew is cleared first: a tenth of a step's time on a CPU.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # other C libraries have no such thing
            trim_threshold, mmap_threshold = -1, -3  # as malloc.h numbers them
            libc.mallopt(mmap_threshold, 32 << 20)  # the most that it takes
            libc.mallopt(trim_threshold, 1 << 30)
