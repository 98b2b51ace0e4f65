"""Reading checkpoints that may come from anywhere: plain data only, and only our own."""

import importlib
import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from lit_gpt_scratch.errors import InputError

PACKAGE = "lit_gpt_scratch"
INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"
# What every checkpoint of ours has, and its keys.
PARTS: dict[str, set[str]] = {
    "state_dict": set(),
    "hyper_parameters": {"net", "alphabet", "context"},
    "datamodule_hyper_parameters": {"corpus", "sha256", "context"},
}
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
    except PermissionError as error:
        raise InputError(f"checkpoint {path}: {error.strerror}.") from error
    except Exception as error:  # a damaged archive fails in many ways, all of them PyTorch's
        raise InputError(
            f"checkpoint {path} is damaged or not a checkpoint: use another, such as the other "
            "of best.ckpt and last.ckpt."
        ) from error
    if not isinstance(checkpoint, dict) or not all(
        isinstance(checkpoint.get(part), dict) and keys <= checkpoint[part].keys()
        for part, keys in PARTS.items()
    ):
        raise InputError(f"checkpoint {path} was not written by {PACKAGE}: use one of its fit.")
    for part in HYPERPARAMETERS:
        values = checkpoint[part]
        if values.get("_instantiator", INSTANTIATOR) != INSTANTIATOR or "_class_path" in values:
            raise InputError(f"checkpoint {path} is refused: it names code of its own to run.")
    wandb_id = checkpoint.get("wandb_id") or "none"
    if not isinstance(wandb_id, str) or not re.fullmatch("[A-Za-z0-9_-]{1,64}", wandb_id):
        raise InputError(f"checkpoint {path} is refused: its wandb_id is not W&B's id of a run.")
    allowed = (PACKAGE, plugin) if plugin else (PACKAGE,)
    for name in named_classes(checkpoint["hyper_parameters"]):
        if not is_class_of(name, allowed):
            raise InputError(
                f"checkpoint {path} is refused: it names {name!r}, which is not part of "
                f"{PACKAGE}. If you trust the module that it is from, name that with --plugin."
            )
    return checkpoint


def named_classes(value: Any, key: str = "") -> Iterator[str]:
    """Every text in nested hyperparameters that the parser might take for a class or for YAML.

    All but words like `gelu`: the parser reads a bare text where a class belongs as its path.
    """
    if isinstance(value, dict):
        for inner, item in value.items():
            yield from named_classes(item, inner)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from named_classes(item)
    elif isinstance(value, str) and key not in ("alphabet", "_instantiator"):
        word = key != "class_path" and re.fullmatch("[a-z0-9_-]*", value)
        yield from [] if word else [value]


def is_class_of(class_path: str, modules: Sequence[str]) -> bool:
    """Whether a path names a class that is defined in one of the modules or below them."""

    def within(module: str) -> bool:
        return any(module == allowed or module.startswith(f"{allowed}.") for allowed in modules)

    module, _, name = class_path.rpartition(".")
    if not within(module):
        return False
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return False
    return isinstance(found, type) and within(found.__module__)


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
