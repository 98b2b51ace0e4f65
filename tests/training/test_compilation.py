"""`--model.compile`: what is compiled and when, and that compiled runs resume."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from compare_runs import last, same, state, tables
from laws import train_small
from test_checkpointing import SendSignal
from torch import nn

from lit_gpt_scratch.data import CharDataModule
from lit_gpt_scratch.models import GPT, Bigram, Ensemble, ModernGPT, NetFactory
from lit_gpt_scratch.training import LitCharLM
from lit_gpt_scratch.training import compilation as module
from lit_gpt_scratch.training.compilation import CompileBlocks, compile_blocks, is_worth_it

COMPILE = nn.Module.compile


def compiled_parts(net: nn.Module) -> list[str]:
    return [name for name, part in net.named_modules() if part._compiled_call_impl]


@pytest.mark.parametrize(
    ("net", "parts"),
    [
        (Bigram, [""]),
        (partial(GPT, layers=2, width=16), ["blocks.0", "blocks.1"]),
        (
            partial(Ensemble, net=partial(GPT, layers=1, width=16), size=2),
            ["members.0.blocks.0", "members.1.blocks.0"],
        ),
    ],
)
def test_blocks_are_compiled_one_by_one(net: NetFactory, parts: list[str]) -> None:
    """A network without blocks is compiled as a whole. The names of weights stay."""
    built = net(alphabet_size=5, context=8)
    names = list(built.state_dict())
    compile_blocks(built)
    assert compiled_parts(built) == parts
    assert list(built.state_dict()) == names


def test_compiled_code_holds_the_rotations_as_constants() -> None:
    """Otherwise it would compute a cosine and a sine for each vector: a sixth of a step."""
    graphs: list[str] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph.code)
        return graph

    torch.compiler.reset()
    net, ids = ModernGPT(5, 8, layers=2, width=16), torch.arange(5)[None]
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    expected = net(ids)
    compile_blocks(net, backend=backend)
    torch.testing.assert_close(net(ids), expected)
    [code] = graphs
    assert "cos(" not in code
    assert "sin(" not in code


def trainer_of(steps: float, batch_size: int = 16, device: str = "cpu", parts: int = 1) -> Any:
    return SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device(device)),
        datamodule=SimpleNamespace(batch_size=batch_size, context=256),
        estimated_stepping_batches=steps,
        accumulate_grad_batches=parts,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, auto compiles nothing")
def test_auto_compiles_where_a_run_on_a_cpu_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """gpt_cpu has 700 steps. Sizes alone decide, so that a resumed run decides as before."""
    net = ModernGPT(65, 256)
    assert is_worth_it(trainer_of(700), net)
    assert is_worth_it(trainer_of(float("inf")), net)
    assert is_worth_it(trainer_of(350, parts=2), net)
    assert not is_worth_it(trainer_of(350), net)
    assert not is_worth_it(trainer_of(700, batch_size=8), net)
    assert not is_worth_it(trainer_of(700, device="meta"), net)
    assert not is_worth_it(trainer_of(10**9, batch_size=1), ModernGPT(65, 256, layers=1, width=32))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not is_worth_it(trainer_of(700), net)


def short_fit(wish: bool | str, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Train for four steps with two validations.

    Return one value for each compiled graph: whether gradients were on. The backend only records.
    """
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(torch.is_grad_enabled())
        return graph

    def compile_with_backend(part: nn.Module, dynamic: bool, **_: Any) -> None:
        COMPILE(part, backend=backend, dynamic=dynamic)

    monkeypatch.setattr(nn.Module, "compile", compile_with_backend)
    torch.compiler.reset()
    data = CharDataModule("sample", 12, 4, seed=1, sample_size=20_000)
    net = partial(GPT, layers=2, width=16)
    model = LitCharLM(net, alphabet=data.alphabet, context=12, compile=wish)  # type: ignore[arg-type]
    trainer = pl.Trainer(
        max_steps=4, max_epochs=-1, check_val_every_n_epoch=None, val_check_interval=2,
        num_sanity_val_steps=0, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(model, data)
    return graphs


def test_only_training_is_compiled_and_blocks_share_the_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Validation has other shapes: it would be compiled again, for a few batches."""
    assert short_fit(True, monkeypatch) == [True]
    assert short_fit("auto", monkeypatch) == []
    monkeypatch.setattr(module, "LONG", 0)
    monkeypatch.setattr("lit_gpt_scratch.training.hardware.SMALL", 0)
    assert short_fit("auto", monkeypatch) == ([True] if sys.platform == "linux" else [])


def test_a_failed_validation_leaves_nothing_uncompiled() -> None:
    """The stance of the compiler is the process's own."""
    callback, called = CompileBlocks(), []
    double = torch.compile(lambda x: 2 * x, backend=lambda graph, _: called.append(1) or graph)
    callback.on_validation_start()
    double(torch.ones(3))
    assert called == []
    callback.on_exception()
    double(torch.ones(3))
    assert called == [1]


WITHOUT_COMPILER = """
import sys
import lightning.pytorch as pl
from lit_gpt_scratch.training import compilation
compilation.is_worth_it = lambda *_: True
from lit_gpt_scratch.data import CharDataModule
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models import Bigram
from lit_gpt_scratch.training import LitCharLM
for compile in ("auto", True):
    data = CharDataModule("sample", 12, 4, seed=1, sample_size=20_000)
    model = LitCharLM(Bigram, alphabet=data.alphabet, context=12, compile=compile)
    trainer = pl.Trainer(
        max_steps=2, limit_val_batches=0, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )
    try:
        trainer.fit(model, data)
        print(compile, "trained", trainer.global_step)
    except InputError as error:
        print(compile, "refused", error)
"""


def test_without_a_compiler_auto_trains_and_true_says_what_is_missing(tmp_path: Path) -> None:
    environment = {"CXX": "/no/such/compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    auto, true = done.stdout.splitlines()
    assert auto == "auto trained 2"
    assert true.startswith("True refused --model.compile true: torch.compile fails here (")
    assert true.endswith("It needs a C++ compiler and the header files of Python. Leave it out.")
    assert "compile      nothing: torch.compile fails here (" in done.stderr


def test_a_compiled_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    """With dropout, which compiled code draws with numbers of its own."""
    flags = [
        "--model.compile=true", "--model.net.dropout=0.2", "--model.net.layers=2",
        "--model.net.width=32", "--trainer.max_steps=8", "--trainer.log_every_n_steps=2",
        "--trainer.val_check_interval=4", "--trainer.callbacks+=test_checkpointing.SendSignal",
    ]  # fmt: skip
    complete = train_small(tmp_path / "complete", *flags).folder
    folder = tmp_path / "stopped" / "runs" / "gpt_cpu" / "version_0"
    SendSignal.batch = 5
    try:
        with pytest.raises(SystemExit):
            train_small(tmp_path / "stopped", *flags)
    finally:
        SendSignal.batch = -1
    torch.compiler.reset()  # as in a new process
    train_small(tmp_path / "stopped", *flags, f"--ckpt_path={last(folder)}")
    assert tables(folder) == tables(complete)
    assert same(state(folder), state(complete))
    eager = train_small(tmp_path / "eager", *flags, "--model.compile=false").folder
    assert not same(state(eager), state(complete))  # the flag did something
