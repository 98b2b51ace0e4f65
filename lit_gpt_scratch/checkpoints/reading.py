"""Reading checkpoints that may come from anywhere: plain data only, and only our own.

A checkpoint is a file of `fit`, or the folder that `export` made of one.
"""

import importlib
import json
import pickle
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_parameter_registration_hook

from lit_gpt_scratch import MOVED
from lit_gpt_scratch.checkpoints.untrusted import require_plain, require_plain_archive
from lit_gpt_scratch.errors import InputError, is_out_of_memory

PACKAGE = "lit_gpt_scratch"
INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"
FRACTIONS = ("val_fraction", "test_fraction")
# What every checkpoint of ours has, and its keys.
PARTS: dict[str, set[str]] = {
    "state_dict": set(),
    "hyper_parameters": {"net", "alphabet", "context"},
    "datamodule_hyper_parameters": {"corpus", "sha256", "context", *FRACTIONS},
}
HYPERPARAMETERS = ("hyper_parameters", "datamodule_hyper_parameters")

# An exported folder's files, and how large its JSON and the header of its weights may be: all of
# Unicode as an alphabet fits.
CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = f"{PACKAGE} 1"
MOST_BYTES = 1 << 22


def read_checkpoint(path: Path, plugin: str | None = None) -> dict[str, Any]:
    """A checkpoint's contents, checked. No code in it is run.

    Of an exported folder, all but what only `fit` needs.

    Args:
        path: The file or folder.
        plugin: A module besides this package that class paths in the checkpoint may name.

    Raises:
        InputError: Missing, damaged, not ours, or naming a class from elsewhere.
    """
    checkpoint = _read(path)
    try:
        require_plain(checkpoint, _size(path))
        for part in HYPERPARAMETERS if isinstance(checkpoint, dict) else ():
            require_plain(checkpoint.get(part), -1)  # no tensors, not even empty ones
    except ValueError as error:
        raise InputError(f"checkpoint {path} is refused: it has {error}.") from error
    if not isinstance(checkpoint, dict) or not all(
        isinstance(checkpoint.get(part), dict) and keys <= checkpoint[part].keys()
        for part, keys in PARTS.items()
    ):
        raise InputError(f"checkpoint {path} was not written by {PACKAGE}: use one of its fit.")
    if not isinstance(checkpoint.get("global_step", 0), int):
        raise InputError(f"checkpoint {path} is refused: its global_step is not a whole number.")
    _require_counts(checkpoint, path)
    _require_own_files(checkpoint, path)
    if not _are_numbers(checkpoint["state_dict"]):
        raise InputError(
            f"checkpoint {path} is refused: its weights are not all finite numbers. If training "
            "diverged, use one from before that."
        )
    checkpoint["state_dict"] = dict(checkpoint["state_dict"])  # without attributes of its own
    for part in HYPERPARAMETERS:
        values = checkpoint[part]
        if values.get("_instantiator", INSTANTIATOR) != INSTANTIATOR or "_class_path" in values:
            raise InputError(f"checkpoint {path} is refused: it names code of its own to run.")
    model = checkpoint["hyper_parameters"]
    if not all(
        isinstance(model.get(name) or {}, dict) for name in ("net", "optimizer", "schedule")
    ):
        raise InputError(f"checkpoint {path} is refused: its net or optimizer is no class.")
    wandb_id = checkpoint.get("wandb_id")
    named = isinstance(wandb_id, str) and re.fullmatch("[A-Za-z0-9_-]{1,64}", wandb_id)
    if wandb_id is not None and not named:
        raise InputError(f"checkpoint {path} is refused: its wandb_id is not W&B's id of a run.")
    for part in HYPERPARAMETERS:
        checkpoint[part] = _renamed(checkpoint[part])
    allowed = (PACKAGE, plugin) if plugin else (PACKAGE,)
    for name in named_classes(checkpoint["hyper_parameters"], words=bool(plugin)):
        if not is_class_of(name, allowed):
            raise InputError(
                f"checkpoint {path} is refused: it names {name!r}, which is not part of "
                f"{PACKAGE}. If you trust the module that it is from, name that with --plugin."
            )
    return checkpoint


def _read(path: Path) -> Any:
    """What is in a file of plain data, or in an exported folder."""
    if not path.exists():
        raise InputError(f"checkpoint {path}: no such file. Give a path, or best or last.")
    remedy = "use another, such as the other of best.ckpt and last.ckpt"
    try:
        if path.is_dir():
            remedy = "export it again"
            return _read_folder(path)
        if not path.is_file():
            raise InputError(f"checkpoint {path} is not a file: give a .ckpt file.")
        require_plain_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(
            f"checkpoint {path} is refused: it holds pickled code, or is not a checkpoint. "
            "Ours hold plain data only."
        ) from error
    except PermissionError as error:
        raise InputError(f"checkpoint {path}: {error.strerror}.") from error
    except Exception as error:  # what is damaged fails in many ways, all of them its reader's
        raise InputError(f"checkpoint {path} is damaged or not a checkpoint: {remedy}.") from error


def _read_folder(folder: Path) -> dict[str, Any]:
    """What `export` wrote, with a checkpoint's keys."""
    config, weights = folder / CONFIG, folder / WEIGHTS
    for file in (config, weights):
        if file.is_symlink() or not file.is_file():
            raise InputError(
                f"checkpoint {folder} is a folder, and not one of {PACKAGE}.export, which has a "
                f"file {file.name} of its own (not a link): name a .ckpt file."
            )
    with weights.open("rb") as opened:
        header = int.from_bytes(opened.read(8), "little")
    if max(header, config.stat().st_size) > MOST_BYTES:
        raise ValueError("absurdly large")
    facts = json.loads(config.read_bytes(), parse_constant=int)  # of NaN, int makes an error
    found = facts.get("format") if isinstance(facts, dict) else None
    if found != FORMAT:
        raise InputError(
            f"checkpoint {folder} was not written by this version of {PACKAGE}.export: its format "
            f"is {str(found)[:40]!r}, not {FORMAT!r}."
        )
    parts = {part: facts.get(part) for part in (*HYPERPARAMETERS, "global_step")}
    return parts | {"state_dict": load_file(weights)}


def _size(path: Path) -> int:
    """Bytes of the file that holds a checkpoint's weights."""
    return (path / WEIGHTS if path.is_dir() else path).stat().st_size


def _are_numbers(weights: dict[str, Any]) -> bool:
    """Whether weights are finite."""
    return all(isinstance(w, torch.Tensor) and bool(w.isfinite().all()) for w in weights.values())


def _nodes(value: Any) -> Iterator[tuple[str, Any]]:
    """All that nested plain data holds, itself first, each with its key in a dictionary or ''."""
    found = [("", value)]
    while found:  # not by recursion, which deep nesting would end
        key, value = found.pop()
        yield key, value
        if isinstance(value, dict):
            found += ((str(name), part) for name, part in value.items())
        elif isinstance(value, list | tuple):
            found += (("", part) for part in value)


def _require_counts(checkpoint: dict[str, Any], path: Path) -> None:
    """Refuse loops that would go on from another place than the checkpoint's, or for ever."""
    for _, state in _nodes(checkpoint.get("loops", {})):
        count = isinstance(state, int) and 0 <= state < 1 << 53
        if not count and not isinstance(state, dict | list):
            raise InputError(f"checkpoint {path} is refused: its loops hold more than counts.")
    try:
        steps = checkpoint["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]
        agree = steps["optimizer"]["step"]["total"]["completed"] == checkpoint["global_step"]
    except (KeyError, TypeError):
        agree = "loops" not in checkpoint  # an exported folder's
    if not agree:
        raise InputError(f"checkpoint {path} is refused: its loops are not at its global_step.")


def _require_own_files(checkpoint: dict[str, Any], path: Path) -> None:
    """Refuse callbacks that name a file elsewhere: Lightning deletes files by their word."""
    for key, state in _nodes(checkpoint.get("callbacks", {})):
        if key.endswith("_path") and not isinstance(state, str):
            raise InputError(f"checkpoint {path} is refused: a path in it is no text.")
        for name in (key, state):
            if isinstance(name, str) and re.search(r"\.\.|::|://|^data:", name):
                raise InputError(f"checkpoint {path} is refused: it names files of others.")


@contextmanager
def no_larger_than(path: Path) -> Iterator[None]:
    """Stop before a network is built that a checkpoint's weights cannot fill.

    Hyperparameters from anywhere may ask for any size. This counts parameters as modules get them,
    when their memory is reserved but not yet used.

    Raises:
        InputError: There are more parameters than the checkpoint has bytes.
    """
    left = _size(path)
    refusal = InputError(
        "the checkpoint has too few weights for this network: do not change its sizes."
    )

    def count(_module: Any, _name: str, parameter: torch.Tensor | None) -> None:
        nonlocal left
        left -= 0 if parameter is None else parameter.numel()
        if left < 0:
            raise refusal

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error) or "overflow" in str(error).lower():  # beyond all numbers
            raise refusal from error
        raise
    finally:
        hook.remove()


def named_classes(value: Any, words: bool = False) -> Iterator[str]:
    """Every text in nested hyperparameters: the parser might take it for a class, YAML, or a file.

    With `words`, all but words like `gelu`, which classes of a plugin may ask for.
    """
    for key, text in _nodes(value):
        if isinstance(text, str) and key not in ("alphabet", "_instantiator"):
            word = words and key != "class_path" and re.fullmatch("[a-z0-9_-]*", text)
            yield from [] if word and not Path(text).exists() else [text]


def _renamed(value: Any) -> Any:
    """Nested hyperparameters with the present class paths of classes that have moved."""
    if isinstance(value, dict):
        named = {key: _renamed(part) for key, part in value.items()}
        path = str(named.get("class_path")).split(".")
        if len(path) == 3 and path[0] == PACKAGE and path[1] in MOVED:
            named["class_path"] = ".".join([PACKAGE, MOVED[path[1]], path[2]])
        return named
    return [_renamed(part) for part in value] if isinstance(value, list) else value


def is_class_of(class_path: str, modules: Sequence[str]) -> bool:
    """Whether a path names a class that is defined in one of the modules or below them."""

    def within(module: str) -> bool:
        return any(module == allowed or module.startswith(f"{allowed}.") for allowed in modules)

    module, _, name = class_path.rpartition(".")
    if not within(module):
        return False
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception:  # there is none, or the name is too strange to look for
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
