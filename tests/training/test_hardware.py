"""Detected features of the hardware, compared with what the operating system reports."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_gpt_scratch.training.hardware import fastest_precision, multiplies_bf16

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")

FAULTS = """
import resource
import torch
from lit_gpt_scratch.training.hardware import keep_freed_memory
from lit_gpt_scratch.models import GPT

keep_freed_memory()
torch.set_num_threads(1)
net, faults = GPT(65, 64), []
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    net(torch.zeros(16, 64, dtype=torch.long)).sum().backward()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(faults[5:]))
"""


@linux
def test_bf16_on_a_cpu_agrees_with_the_features_that_the_kernel_lists() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    assert multiplies_bf16("cpu") == bool({"avx512_bf16", "amx_bf16"} & set(flags))


def test_a_missing_device_does_not_multiply_bf16() -> None:
    assert multiplies_bf16("cuda") <= torch.cuda.is_available()
    assert not multiplies_bf16("mps")


def test_the_fastest_precision_fits_the_device_that_lightning_chooses() -> None:
    if torch.backends.mps.is_available():
        device = "mps"
    else:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    assert fastest_precision() == ("bf16-mixed" if multiplies_bf16(device) else "32-true")


@linux
def test_keep_freed_memory_avoids_page_faults() -> None:
    """Without it, each step has about 1,000 page faults."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1000
