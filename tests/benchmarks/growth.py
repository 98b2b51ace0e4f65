"""One part of `make bench`: how the cost of a training step grows with the sizes of gpt_cpu."""

import json
import subprocess
import sys

import torch
from common import Figures, raw_loop
from tqdm import tqdm

from lit_gpt_scratch.runs.comparison import markdown_table
from lit_gpt_scratch.training.hardware import keep_freed_memory

AXES = {
    "batch": ("data.batch_size", (8, 16, 32, 64)),
    "context": ("data.context", (32, 64, 128, 256, 512)),
    "width": ("model.net.width", (64, 128, 256, 512)),
    "layers": ("model.net.layers", (1, 2, 4, 8)),
}


def measure_size(flag: str) -> None:
    """Print the ms of a step, and the MiB that training adds to this process."""
    import resource  # Unix only; the quick tests import this file on Windows, too

    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ms = raw_loop("gpt_cpu", 20, flag)
    print(json.dumps([ms, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024]))


def exponent(sizes: tuple[int, ...], values: list[float]) -> float:
    """Return the exponent of the power law: the slope of a line through the logarithms."""
    x, y = (torch.tensor(v, dtype=torch.double).log() for v in (sizes, values))
    x = x - x.mean()
    return ((x * y).sum() / x.square().sum()).item()


def growth(_peer: object, _count: int) -> tuple[Figures, str]:
    """Time and memory of a step of gpt_cpu when one size grows and the others stay fixed."""
    found: Figures = {}
    table = []
    for axis, (flag, sizes) in AXES.items():
        ms, mib = [], []
        for size in tqdm(sizes, desc=axis, leave=False):
            command = [sys.executable, __file__, f"--{flag}={size}"]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for values, value in zip((ms, mib), json.loads(output.splitlines()[-1]), strict=True):
                values.append(value)
        found |= {f"{axis}: ms": ms, f"{axis}: MiB": mib}
        for name, values in (("ms", ms), ("MiB", mib)):
            cells = ", ".join(f"{size}: {v:.0f}" for size, v in zip(sizes, values, strict=True))
            table.append([axis, name, cells, f"{exponent(sizes, values):.2f}"])
    return found, markdown_table([["grows", "", "size: value", "exponent"], *table])


if __name__ == "__main__":
    keep_freed_memory()
    measure_size(sys.argv[1])
