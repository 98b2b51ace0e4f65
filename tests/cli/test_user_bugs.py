"""A bug in a user's own code keeps its traceback, wherever it is raised; a mistake is one line."""

import sys
from pathlib import Path

import pytest
from laws import train_small
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lit_gpt_scratch import cli, inspection
from lit_gpt_scratch.errors import InputError, raise_user_bug

OWN = """
import os

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lit_gpt_scratch.models import GPT


class Unpicklable:
    def __reduce__(self):
        raise RuntimeError("not picklable")


class Optimizer(torch.optim.SGD):
    def __init__(self, params, lr: float = 0.1):
        [1][lr]


class Schedule(torch.optim.lr_scheduler.LRScheduler):
    def __init__(self, optimizer, steps: float, factor: float = 1.0):
        raise ValueError("in the schedule")


class Pretrained(GPT):
    def __init__(self, alphabet_size: int, context: int):
        super().__init__(alphabet_size, context, layers=1, width=16)
        self.load_state_dict({})


class Early(pl.Callback):
    def __init__(self, factor: int = 3):
        self.factor = factor + "a"


class Misled(pl.Callback):
    def on_train_start(self, *_):
        raise MisconfigurationException("in the callback")


class Stateful(pl.Callback):
    def state_dict(self):
        return {"state": Unpicklable()}


class Logger(pl.loggers.CSVLogger):
    def __init__(self, save_dir: str = "."):
        raise TypeError("in the logger")


class Net(GPT):
    def __init__(self, alphabet_size: int, context: int):
        super().__init__(alphabet_size, context, layers=1, width=16)
        if "BROKEN" in os.environ:
            raise KeyError("in the network")
"""


@pytest.fixture(autouse=True)
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put three modules into the working directory; two of them fail when imported."""
    (tmp_path / "own_code.py").write_text(OWN, encoding="utf-8")
    (tmp_path / "lacks_a_package.py").write_text("import no_such_package_at_all", encoding="utf-8")
    (tmp_path / "has_a_typo.py").write_text("value = undefined_name", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("own_code", "lacks_a_package", "has_a_typo"):
        monkeypatch.delitem(sys.modules, name, raising=False)


BUGS = [
    (TypeError, "list indices", ["--plugin=own_code", "--model.optimizer=own_code.Optimizer"]),
    (ValueError, "schedule", ["--plugin=own_code", "--model.schedule=own_code.Schedule"]),
    (RuntimeError, "loading state_dict", ["--plugin=own_code", "--model.net=own_code.Pretrained"]),
    (TypeError, "unsupported operand", ["--trainer.callbacks=own_code.Early"]),
    (MisconfigurationException, "callback", ["--trainer.callbacks=own_code.Misled"]),
    (RuntimeError, "not picklable", ["--trainer.callbacks=own_code.Stateful"]),
    (TypeError, "logger", ["--trainer.logger=own_code.Logger"]),
    (NameError, "undefined_name", ["--plugin=has_a_typo"]),
    (NameError, "undefined_name", ["--trainer.callbacks=has_a_typo.Own"]),
    (ModuleNotFoundError, "no_such_package_at_all", ["--plugin=lacks_a_package"]),
    (ModuleNotFoundError, "no_such_package_at_all", ["--trainer.callbacks=lacks_a_package.Own"]),
]


@pytest.mark.parametrize(("error", "words", "flags"), BUGS, ids=[" ".join(b[2]) for b in BUGS])
def test_a_bug_keeps_its_type_its_text_and_its_place(
    error: type[Exception], words: str, flags: list[str]
) -> None:
    with pytest.raises(error, match=words) as found:
        train_small(Path(), *flags)
    assert not isinstance(found.value, InputError)
    files = {Path(str(entry.path)).name for entry in found.traceback}
    assert files & {"own_code.py", "lacks_a_package.py", "has_a_typo.py"}


def test_a_bug_in_a_network_keeps_its_traceback_when_a_checkpoint_is_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plugin = ["--plugin=own_code"]
    run = train_small(Path(), *plugin, "--model.net=own_code.Net").folder
    last = f"{run}/checkpoints/last.ckpt"
    monkeypatch.setenv("BROKEN", "yes")
    for command in (["validate"], ["fit", "--trainer.max_steps=9"]):
        with pytest.raises(KeyError, match="in the network"):
            cli.main([*command, *plugin, f"--ckpt_path={last}"])
    with pytest.raises(KeyError, match="in the network"):
        inspection.load(last, "own_code")


def test_a_plugin_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_small(Path(), "--plugin=elsewhere.own")
    assert "--plugin elsewhere.own: No module named 'elsewhere'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["EarlyStopping", "ModelCheckpoint"])
def test_a_misnamed_metric_is_one_line(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning finds it at the first validation, and raises a type of its own for each callback.

    The run's rows stay on disk.
    """
    flags = [f"--trainer.callbacks={kind}", "--trainer.callbacks.monitor=val/los"]
    flags += ["--trainer.callbacks.dirpath=more"] if kind == "ModelCheckpoint" else []
    with pytest.raises(SystemExit) as stop:
        train_small(Path(), *flags)
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert "val/los" in line
    assert "val/loss" in line, "the metrics that there are"
    assert (tmp_path / "runs/gpt_cpu/version_0/metrics.csv").exists()


def test_an_input_error_of_a_users_code_is_no_bug() -> None:
    """A user's code may refuse a value with an InputError, as ours does."""
    with pytest.raises(InputError) as refused:
        raise InputError("width is 3")  # this file is outside the installed packages
    raise_user_bug(refused.value)
    with pytest.raises(TypeError) as bug:
        raise TypeError("width is a text")
    with pytest.raises(TypeError):
        raise_user_bug(bug.value)
