"""The list of commands, and commands as processes."""

import contextlib
import io
import logging
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TINY, Refusal

from lit_gpt_scratch import cli
from lit_gpt_scratch.cli import program
from lit_gpt_scratch.training import LitCharLM

LIGHTNING_LOGGERS = ("lightning.pytorch", "lightning.fabric")


def process(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the installed program as a process of its own."""
    return subprocess.run(
        [Path(sys.executable).parent / "lit-gpt-scratch", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )


def test_without_a_command_the_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    for args in ([], ["--help"], ["-h"], ["--config", "none.yaml", "--help"]):
        cli.main(args)
        said = capsys.readouterr().out
        for command in ("fit", "validate", "test", "predict", "report", "export", "dashboard"):
            assert f"\n  {command} " in said


def test_without_a_command_all_configs_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main([])
    names = capsys.readouterr().out.partition("Configs: ")[2].partition(".")[0]
    configs = Path(__file__).parents[2] / "configs"
    assert names.replace("\n", " ").split(", ") == sorted(p.stem for p in configs.glob("*.yaml"))


def test_a_wrong_command_is_one_line(refusal: Refusal) -> None:
    assert "did you mean fit?" in refusal("fitt")
    assert "did you mean fit?" in refusal("fitt", "--help")
    assert "one of fit, validate" in refusal("zzz")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_says_at_once_that_libraries_load_and_erases_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def said(*args: str, stream: io.StringIO) -> str:
        monkeypatch.setattr(sys, "stderr", stream)
        program.find_command(args)
        return stream.getvalue()

    for command in ("fit", "predict"):
        notice = f"lit-gpt-scratch {command}: loading PyTorch and Lightning ..."
        _, shown, blank, rest = said(command, stream=Terminal()).replace(notice, "\r!").split("\r")
        assert (shown, blank, rest) == ("!", " " * len(notice), "")
        assert said(command, stream=io.StringIO()) == ""
    for args in (["fit", "--help"], ["predict", "-h"], ["fit", "--help.trainer"], ["--version"]):
        assert said(*args, stream=Terminal()) == ""
    monkeypatch.setenv("LOCAL_RANK", "0")  # a process that torchrun has started
    assert said("fit", stream=Terminal()) == ""


# What a call of `main` leaves behind in the process


def process_state() -> dict[str, Any]:
    """Return what a command could change for the rest of the process."""
    loggers = [logging.getLogger(name) for name in (None, "lightning", *LIGHTNING_LOGGERS)]
    return {
        "environment": {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"},
        "signal handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "logging levels": [logger.level for logger in loggers],
        "warning filters": list(warnings.filters),
        "threads": torch.get_num_threads(),
    }


def fail(*_: Any) -> None:
    raise RuntimeError("a failing step")


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def marked_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Give a process state that differs from what Lightning and Python set themselves."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    monkeypatch.setenv("LIT_GPT_SCRATCH_PARENT", str(os.getppid()))
    monkeypatch.delenv("OMP_NUM_THREADS")  # then fit chooses the number of threads
    torch.set_num_threads(2)
    for level, name in enumerate(LIGHTNING_LOGGERS, start=11):
        monkeypatch.setattr(logging.getLogger(name), "level", level)
    stops = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.signal(number, lambda *_: None) for number in stops]
    yield process_state()
    for number, handler in zip(stops, handlers, strict=True):
        signal.signal(number, handler)
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("step", "flags", "error"),
    [
        (None, [], None),
        (None, ["--wandb.mode", "offline"], None),
        (None, ["--data.context", "0"], SystemExit),
        (None, ["--data.contxt", "0"], SystemExit),
        (fail, [], RuntimeError),
        (interrupt, [], SystemExit),
    ],
    ids=["fit", "with W&B", "refused", "typo", "failing step", "Ctrl-C"],
)
def test_a_command_leaves_the_process_as_it_was(
    step: Callable[..., None] | None,
    flags: list[str],
    error: type[BaseException] | None,
    marked_process: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Environment, signal handlers, logging levels, warning filters and number of threads."""
    if step:
        monkeypatch.setattr(LitCharLM, "training_step", step)
    with pytest.raises(error) if error else contextlib.nullcontext():
        cli.main(["fit", *TINY, *flags, "--trainer.default_root_dir", str(tmp_path)])
    assert process_state() == marked_process


def test_validate_and_predict_leave_the_process_as_it_was(
    checkpoint: Path, marked_process: dict[str, Any]
) -> None:
    cli.main(["validate", "--ckpt_path", str(checkpoint)])
    cli.main(["predict", "--ckpt_path", str(checkpoint), "--max_new_tokens", "5"])
    assert process_state() == marked_process


# Commands as processes


@pytest.mark.slow
def test_every_command_works_as_a_process(tmp_path: Path) -> None:
    """Training records in W&B, offline and without an account."""
    flags = [flag if flag != "disabled" else "offline" for flag in TINY]
    flags += ["--data.test_fraction", "0.2", "--trainer.default_root_dir", str(tmp_path)]
    fit = process("fit", *flags, WANDB_API_KEY="", HOME=str(tmp_path))
    assert fit.returncode == 0, fit.stderr
    assert "wandb sync" in fit.stdout
    assert list((tmp_path / "runs/gpt_cpu/version_0/wandb").glob("offline-run-*/run-*.wandb"))
    best = shutil.copy(tmp_path / "runs/gpt_cpu/version_0/checkpoints/best.ckpt", tmp_path)
    test = process("test", "--ckpt_path", best)  # validate is the same method
    assert test.returncode == 0, test.stderr
    assert "loss" in test.stdout
    predict = process("predict", "--ckpt_path", best, "--max_new_tokens", 10, "--prompt", "We ")
    assert predict.returncode == 0, predict.stderr
    assert predict.stdout.startswith("We ")
    assert len(predict.stdout) == 14


@pytest.mark.slow
def test_a_mistake_as_a_process_is_one_line_and_an_exit_code() -> None:
    module = subprocess.run(
        [sys.executable, "-m", "lit_gpt_scratch", "fit", "--data.context", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert module.returncode == 2
    assert module.stdout == ""
    assert module.stderr == "lit-gpt-scratch: error: --data.context is 0: it must be at least 1.\n"
