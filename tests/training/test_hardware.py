"""What the machine at hand does fast, against what its system says of it."""

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
def test_a_cpu_multiplies_bf16_where_the_kernel_lists_it() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    assert multiplies_bf16("cpu") == bool({"avx512_bf16", "amx_bf16"} & set(flags))


def test_only_a_device_that_is_there_multiplies_bf16() -> None:
    assert multiplies_bf16("cuda") <= torch.cuda.is_available()
    assert not multiplies_bf16("mps")


def test_the_fastest_precision_is_that_of_the_device_that_lightning_takes() -> None:
    if torch.backends.mps.is_available():
        device = "mps"
    else:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    assert fastest_precision() == ("bf16-mixed" if multiplies_bf16(device) else "32-true")


@linux
def test_steps_get_back_the_memory_that_those_before_them_freed() -> None:
    """Hardly a page of it is asked for anew: without, there are a thousand in each step."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1000
