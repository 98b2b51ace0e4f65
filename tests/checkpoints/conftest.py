"""A trained checkpoint, and a copy of it to edit."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from laws import train_small

from lit_gpt_scratch.cli.commands import CharCLI


@pytest.fixture(scope="session")
def fit(tmp_path_factory: pytest.TempPathFactory) -> CharCLI:
    """A run of `fit` with a GPT whose parts are all nested classes."""
    flags = ["--model.net=GPT", "--model.net.layers=2", "--model.net.width=16"]
    flags += ["--model.net.attention.heads=2"]
    return train_small(tmp_path_factory.mktemp("fit"), *flags)


@pytest.fixture
def path(fit: CharCLI, tmp_path: Path) -> Path:
    """A copy of the run's last checkpoint in another folder."""
    return Path(shutil.copy(fit.folder / "checkpoints" / "last.ckpt", tmp_path / "moved.ckpt"))


@pytest.fixture
def edited(path: Path) -> Callable[[Callable[[dict[str, Any]], Any]], Path]:
    """Return a function that edits the checkpoint's contents and saves it again."""

    def write(edit: Callable[[dict[str, Any]], Any]) -> Path:
        contents = torch.load(path, weights_only=True)
        edit(contents)
        torch.save(contents, path)
        return path

    return write
