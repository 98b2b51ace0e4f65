"""Detected features of the hardware, compared with what the operating system reports."""

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from laws import parse
from lightning.pytorch.accelerators import MPSAccelerator

from lit_gpt_scratch.models import count_parameters
from lit_gpt_scratch.runs.callbacks import SymbolLossRecorder
from lit_gpt_scratch.training import throughput
from lit_gpt_scratch.training.hardware import (
    SMALL,
    fastest_precision,
    kind_of_device,
    measured_flops,
    multiplies_bf16,
    one_thread_if_small,
    supported,
    synchronize,
)

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


@pytest.mark.needs("linux", "/proc/cpuinfo")
def test_bf16_on_a_cpu_agrees_with_the_features_that_the_kernel_lists() -> None:
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
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


def test_the_measured_peak_is_plausible() -> None:
    assert 1e8 < measured_flops(torch.float32, 256) < 1e15
    assert 1e8 < throughput.peak_flops(torch.device("cpu"), torch.float32) < 1e15


@pytest.mark.parametrize(
    ("name", "peak"), [("NVIDIA A100-SXM4-40GB", 312e12), ("NVIDIA H200", 1.5), ("A new one", 1.5)]
)
def test_the_peak_is_measured_where_lightning_does_not_know_it(
    name: str, peak: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a warning. No GPU was there: its name and the measurement are fakes."""
    gpu = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: {gpu: name}[device])

    def measure(dtype: torch.dtype, device: torch.device) -> float:
        return {(torch.bfloat16, gpu): 1.5}[dtype, device]

    monkeypatch.setattr(throughput, "measured_flops", measure)
    with warnings.catch_warnings(action="error"):
        assert throughput.peak_flops(gpu, torch.bfloat16) == peak


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is waited for, from now on; no GPU was there."""
    waits: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waits.append(str(device)))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waits.append("mps"))
    return waits


def test_a_gpu_is_waited_for(waits: list[str]) -> None:
    for name in ("cuda:1", "mps", "cpu"):
        synchronize(torch.device(name))
    assert waits == ["cuda:1", "mps"]


def test_the_clock_is_read_when_the_gpu_has_done_its_work(
    waits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each reading: at the start, at a log step, around a validation, and at the end."""

    def read() -> float:
        waits.append("clock")
        return float(len(waits))

    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=read))
    callback = throughput.Throughput()
    callback._device, callback._chars_per_step, callback._flops_per_step = torch.device("mps"), 1, 0
    trainer = SimpleNamespace(global_step=10, log_every_n_steps=10)
    callback.on_train_start()
    callback.on_train_batch_end(trainer, SimpleNamespace(log=lambda *_: None))
    callback.on_validation_start()
    callback.on_validation_end()
    callback.on_train_end()
    assert waits == ["mps", "clock"] * 5
    assert callback.train_seconds == 2 + 2 + 2, "the validation is left out"


@pytest.mark.needs("linux", "glibc")
def test_keep_freed_memory_avoids_page_faults() -> None:
    """Without it, each step has about 1,000 page faults."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1000


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give PyTorch two threads, which the user has not asked for."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def threads_in_training(
    parameters: int, characters: int, device: str = "cpu", processes: int = 1
) -> int:
    """Return how many threads train a network; check that the number is restored."""
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device(device)), world_size=processes
    )
    net = torch.nn.Linear(parameters, 1, bias=False, device="meta")
    try:
        with one_thread_if_small(trainer, net, characters):
            inside = torch.get_num_threads()
            raise KeyError("training fails")
    except KeyError:
        pass
    assert torch.get_num_threads() == 2
    return inside


@pytest.mark.usefixtures("two_threads")
def test_a_small_network_trains_on_one_thread_and_a_notice_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert threads_in_training(SMALL // 100, 99) == 1
    assert capsys.readouterr().err == "threads      1 of 2: the network is small\n"
    assert threads_in_training(SMALL // 100, 100) == 2
    assert threads_in_training(10, 10, device="cuda") == 2
    assert threads_in_training(10, 10, processes=2) == 2, "Lightning sets the threads of each"
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("two_threads")
def test_threads_that_the_user_has_set_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads_in_training(10, 10) == 2


@pytest.mark.parametrize(("name", "is_small"), [("transformer", True), ("gpt_cpu_short", False)])
def test_the_rungs_up_to_transformer_are_small(name: str, is_small: bool) -> None:
    """Earlier rungs have fewer parameters, later ones more."""
    parsed = parse("--config", name)
    characters = parsed.config.data.batch_size * parsed.config.data.context
    assert (count_parameters(parsed.model.net) * characters < SMALL) == is_small


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer the question that finds MPS with yes; no machine with MPS was there to run this."""
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))


@pytest.mark.usefixtures("mac")
def test_mps_is_chosen_where_it_is_and_starts_in_fp32() -> None:
    """Checked with a fake answer, because no MPS was there."""
    devices = {name: kind_of_device(name) for name in ("auto", "gpu", "mps", "cpu")}
    assert devices == {"auto": "mps", "gpu": "mps", "mps": "mps", "cpu": "cpu"}
    assert fastest_precision() == "32-true"


PRECISION, COMPILE = "--trainer.precision", "--model.compile"
WISHES = [(PRECISION, value) for value in ("64-true", "32-true", "16-mixed", "bf16-mixed")]
WISHES += [(COMPILE, "true"), (COMPILE, "false")]


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_what_mps_lacks_is_replaced_with_a_notice(
    device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pure decision: no MPS was there. Other devices keep every wish."""
    used = {wish: supported(device, *wish) for wish in WISHES}
    notices = capsys.readouterr().err.splitlines()
    lacks = {(PRECISION, "64-true"): "32-true", (COMPILE, "true"): "false"}
    lacks = lacks if device == "mps" else {}
    assert used == {wish: wish[1] for wish in WISHES} | lacks
    assert [line.split(". MPS lacks it: ")[0] for line in notices] == [
        f"Notice: {' '.join(wish)} is replaced by {value}" for wish, value in lacks.items()
    ]


@pytest.mark.usefixtures("mac")
@pytest.mark.parametrize("accelerator", ["mps", "cpu"])
def test_fit_asks_which_wishes_its_device_has(
    accelerator: str,
) -> None:
    """No MPS was there: the Trainer itself, which would look for one, is not made."""
    flags = ["--trainer.precision=64", "--model.compile=true"]
    config = parse(f"--trainer.accelerator={accelerator}", *flags).config
    is_mac = accelerator == "mps"
    assert config.trainer.precision == ("32-true" if is_mac else "64-true")
    assert config.model.compile is not is_mac


def test_losses_of_characters_are_doubled_in_size_only_on_the_cpu(tmp_path: Path) -> None:
    """MPS refuses float64. This tensor does so too, because no MPS was there."""

    class OnMPS(torch.Tensor):
        def double(self, *_: Any) -> torch.Tensor:
            raise TypeError("Cannot convert a MPS Tensor to float64")

        def cpu(self, *_: Any) -> torch.Tensor:
            return self.as_subclass(torch.Tensor)

    recorder = SymbolLossRecorder(tmp_path)
    module = SimpleNamespace(tokenizer="ab")
    recorder.on_validation_start(None, module)
    batch = SimpleNamespace(split="val", targets=torch.tensor([[0, 1, 1]]), counted=None)
    losses = torch.tensor([[1.0, 2.0, 3.0]]).as_subclass(OnMPS)
    recorder.on_validation_batch_end(None, module, {"losses": losses}, batch)
    assert recorder.sums.tolist() == [[1.0, 2.0], [1.0, 5.0]]
