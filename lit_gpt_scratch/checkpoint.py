"""Reading checkpoints that may come from anywhere: plain data only, and only our own."""

import importlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lit_gpt_scratch.errors import InputError

PACKAGE = "lit_gpt_scratch"
INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"
HYPERPARAMETERS = ("hyper_parameters", "datamodule_hyper_parameters")


def read_checkpoint(path: Path, plugin: str | None = None) -> dict[str, Any]:
    """A checkpoint's contents, checked. No code in it is run.

    Args:
        path: The file.
        plugin: A module besides this package that class paths in the checkpoint may name.

    Raises:
        InputError: Missing, damaged, not ours, or naming a class from elsewhere.
    """
    if path.is_dir():
        raise InputError(f"checkpoint {path} is a folder: name the .ckpt file in it.")
    if not path.exists():
        raise InputError(f"checkpoint {path}: no such file. Give a path, or best or last.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"checkpoint {path} is refused: it holds pickled code, or is not a checkpoint. "
            "Ours hold plain data only."
        ) from error
    except OSError as error:
        raise InputError(f"checkpoint {path}: {error.strerror or error}.") from error
    except Exception as error:  # a damaged archive fails in many ways, all of them PyTorch's
        raise InputError(
            f"checkpoint {path} is damaged or not a checkpoint: use another, such as the other "
            "of best.ckpt and last.ckpt."
        ) from error
    if not isinstance(checkpoint, dict) or not all(
        isinstance(checkpoint.get(part), dict) for part in ("state_dict", *HYPERPARAMETERS)
    ):
        raise InputError(f"checkpoint {path} was not written by {PACKAGE}: use one of its fit.")
    parts = [checkpoint[part] for part in HYPERPARAMETERS]
    for part in parts:
        if part.get("_instantiator", INSTANTIATOR) != INSTANTIATOR:
            raise InputError(f"checkpoint {path} is refused: it names code of its own to run.")
    allowed = (PACKAGE, plugin) if plugin else (PACKAGE,)
    for class_path in class_paths(parts):
        if not any(class_path.startswith(f"{module}.") for module in allowed):
            raise InputError(
                f"checkpoint {path} names the class {class_path!r}, which is not part of "
                f"{PACKAGE}: if you trust that module, name it with --plugin."
            )
    return checkpoint


def class_paths(value: Any) -> Iterator[str]:
    """Every class path in nested hyperparameters."""
    if isinstance(value, dict):
        if "class_path" in value:
            yield str(value["class_path"])
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from class_paths(item)


def import_plugin(plugin: str | None) -> None:
    """Import a module that a user named, so that class paths find it.

    Raises:
        InputError: It cannot be imported.
    """
    try:
        if plugin:
            importlib.import_module(plugin)
    except ImportError as error:
        raise InputError(f"--plugin {plugin}: {error}. Is its folder on PYTHONPATH?") from error


def find_checkpoint(wanted: str, runs: Path) -> Path:
    """The file that `wanted` means: a path, or `best` or `last` of the newest run.

    Raises:
        InputError: There is no run yet.
    """
    if wanted not in ("best", "last"):
        return Path(wanted).expanduser()
    found = runs.glob(f"*/version_*/checkpoints/{wanted}.ckpt")
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise InputError(f"ckpt_path {wanted}: no run under {runs} has one. Run fit first.")
    return newest
