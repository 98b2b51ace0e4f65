"""The check that a checkpoint is refused in one line, by reading as by loading, and `predict`."""

from pathlib import Path

import pytest

from lit_gpt_scratch import inspection
from lit_gpt_scratch.checkpoints.formats import read_checkpoint
from lit_gpt_scratch.cli import main
from lit_gpt_scratch.errors import InputError


def predict(path: Path) -> None:
    main(["predict", "--ckpt_path", str(path), "--max_new_tokens", "5"])


def assert_refused(path: Path, message: str, plugin: str | None = None) -> None:
    """Check that reading and loading fail with one line that names the file."""
    for read in (read_checkpoint, inspection.load):
        with pytest.raises(InputError, match=message) as error:
            read(path, plugin)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
