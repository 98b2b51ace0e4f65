"""A finished tiny run, its checkpoint, and a check of refused commands."""

import re
import shutil
from pathlib import Path

import pytest
from tiny import TINY, Refusal

from lit_gpt_scratch import cli


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished tiny run."""
    root = tmp_path_factory.mktemp("root")
    return cli.main(["fit", *TINY, "--trainer.default_root_dir", str(root)]).folder


@pytest.fixture(scope="session")
def checkpoint(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the run's best checkpoint, alone in a folder."""
    return Path(shutil.copy(run_folder / "checkpoints/best.ckpt", tmp_path_factory.mktemp("alone")))


@pytest.fixture
def refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refusal:
    """Return a function that runs a command that must fail, and returns its one line of error."""

    def refuse(*arguments: object) -> str:
        here = tmp_path / "here"
        here.mkdir(exist_ok=True)
        monkeypatch.chdir(here)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert stop.value.code == 2
        assert said.out == ""
        assert re.fullmatch(r"lit-gpt-scratch( playground)?: error: [^\n]+\n", said.err)
        assert list(here.iterdir()) == [], "a file was written"
        return said.err

    return refuse
