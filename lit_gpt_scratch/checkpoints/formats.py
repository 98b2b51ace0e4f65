"""The two formats of a checkpoint: the .ckpt file of `fit`, and the folder that `export` makes.

Both are read without running code from them. A folder holds safetensors and JSON, without the
optimizer's state and everything else that only `fit` needs. The formats of `export` for other
programs are not read.
"""

import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch.nn.modules.module import register_module_parameter_registration_hook

from lit_gpt_scratch import MOVED
from lit_gpt_scratch.checkpoints.plugins import module_name
from lit_gpt_scratch.checkpoints.untrusted import (
    require_classes_of,
    require_plain,
    require_plain_archive,
    require_state_of_fit,
)
from lit_gpt_scratch.errors import InputError, is_out_of_memory, raise_user_bug
from lit_gpt_scratch.files import atomic_write, staging_dir
from lit_gpt_scratch.private_api import INSTANTIATOR_KEY, OVERFLOW

PACKAGE = "lit_gpt_scratch"
# The parts that every checkpoint of `fit` has, and their required keys.
PARTS: dict[str, set[str]] = {
    "state_dict": set(),
    "hyper_parameters": {"net", "alphabet", "context"},
    "datamodule_hyper_parameters": {"corpus", "sha256", "context", "val_fraction", "test_fraction"},
}
HYPERPARAMETERS = ("hyper_parameters", "datamodule_hyper_parameters")

CONFIG, WEIGHTS = "config.json", "model.safetensors"  # the files of an exported folder
FORMAT = f"{PACKAGE} 1"
FOR_OTHERS = {"onnx": "ONNX", "huggingface": "Hugging Face"}  # exports that are not read here
MAX_JSON_BYTES = 1 << 22  # of config.json and of the weights' header; the longest alphabet fits


def read_checkpoint(
    path: Path, plugin: str | None = None, for_training: bool = True
) -> dict[str, Any]:
    """Return a checkpoint's contents, checked, without running any code from it.

    Class paths in it may name this package and `plugin`, a module or its file. Unless it is
    `for_training`, the hyperparameters lack optimizer and schedule, whose modules import Lightning.
    Raises `InputError` if it is missing, damaged, not plain data, or names other classes or files.
    """
    checkpoint = _load(path)
    try:
        require_plain(checkpoint, _size(path))
        found = checkpoint if isinstance(checkpoint, dict) else {}
        for part, keys in PARTS.items():
            if not isinstance(found.get(part), dict) or not keys <= found[part].keys():
                raise ValueError(f"it was not written by {PACKAGE}: give one that `fit` wrote")
        for part in HYPERPARAMETERS:
            require_plain(checkpoint[part], size=-1)  # no tensors, not even empty ones
            checkpoint[part] = _with_current_class_paths(checkpoint[part])
        checkpoint["datamodule_hyper_parameters"].setdefault("order", "random")  # of older versions
        require_state_of_fit(checkpoint)
        if not for_training:
            for name in ("optimizer", "schedule"):
                checkpoint["hyper_parameters"].pop(name, None)
        modules = (PACKAGE, module_name(plugin)) if plugin else (PACKAGE,)
        require_classes_of(checkpoint["hyper_parameters"], modules)
    except ValueError as error:
        raise InputError(f"checkpoint {path} is refused: {error}.") from error
    checkpoint["state_dict"] = dict(checkpoint["state_dict"])  # drops the dictionary's attributes
    return checkpoint


def _load(path: Path) -> Any:
    """Load a file of plain data or an exported folder."""
    if not path.exists():
        raise InputError(
            f"checkpoint {path}: no such file. Give a run's folder, a .ckpt file, or best or last; "
            "lit-gpt-scratch runs lists the runs."
        )
    remedy = "use another; best.ckpt and last.ckpt of a run may be one file with two names"
    try:
        if path.is_dir():
            remedy = "export it again"
            return _load_folder(path)
        if not path.is_file():
            raise InputError(f"checkpoint {path} is not a file: give a .ckpt file.")
        require_plain_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(
            f"checkpoint {path} is refused: it holds pickled code, or is not a checkpoint. "
            f"Checkpoints of {PACKAGE} hold plain data only."
        ) from error
    except PermissionError as error:
        raise InputError(f"checkpoint {path}: {error.strerror}. Allow reading it.") from error
    except Exception as error:  # damaged files raise many types
        raise InputError(f"checkpoint {path} is damaged or not a checkpoint: {remedy}.") from error


def _load_folder(folder: Path) -> dict[str, Any]:
    """Load an exported folder, with a checkpoint's keys."""
    config, weights = folder / CONFIG, folder / WEIGHTS
    _require_file(folder, config)
    if config.stat().st_size > MAX_JSON_BYTES:
        raise ValueError("too large")
    contents = json.loads(config.read_bytes(), parse_constant=int)  # int raises for NaN
    found = contents.get("format") if isinstance(contents, dict) else None
    for kind, title in FOR_OTHERS.items():
        if found == format_of(kind):
            raise InputError(
                f"checkpoint {folder} is an export for {title}, which only other programs read: "
                "give the .ckpt file, or export that again without --format."
            )
    _require_file(folder, weights)
    with weights.open("rb") as opened:
        header_bytes = int.from_bytes(opened.read(8), "little")
    if header_bytes > MAX_JSON_BYTES:
        raise ValueError("too large")
    if found != FORMAT:
        raise InputError(
            f"checkpoint {folder} was not written by this version of {PACKAGE}.export: its format "
            f"is {str(found)[:40]!r}, not {FORMAT!r}."
        )
    parts = {part: contents.get(part) for part in (*HYPERPARAMETERS, "global_step")}
    return parts | {"state_dict": load_file(weights)}


def _require_file(folder: Path, file: Path) -> None:
    """Raise `InputError` if a file of an exported folder is missing or a link."""
    if file.is_symlink() or not file.is_file():
        raise InputError(
            f"checkpoint {folder} is a folder but not an export of {PACKAGE}: a regular file "
            f"{file.name} is missing. Give an exported folder or a .ckpt file."
        )


def write_export(contents: dict[str, Any], checkpoint: Path, output: Path) -> None:
    """Write what `read_checkpoint` read into a new folder, which appears when it is complete.

    Raises `InputError` if the contents do not fit into JSON or the folder cannot be written.
    """
    config: dict[str, Any] = {"format": FORMAT, **_training_facts(contents, checkpoint)}
    for part in HYPERPARAMETERS:
        config[part] = {k: v for k, v in contents[part].items() if k != INSTANTIATOR_KEY}
    try:
        text = json.dumps(config, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"checkpoint {checkpoint} does not fit into JSON: {error}.") from error
    write_folder(output, {CONFIG: text.encode(), WEIGHTS: as_safetensors(contents["state_dict"])})


def as_safetensors(
    weights: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> bytes:
    """Return the contents of a safetensors file. Tied weights are stored twice."""
    # safetensors refuses tensors that share memory, as tied weights do.
    copies = {k: w.clone(memory_format=torch.contiguous_format) for k, w in weights.items()}
    return save(copies, metadata)


def write_folder(output: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a new folder, which appears when it is complete.

    Raises `InputError` if the folder cannot be written.
    """
    try:
        with staging_dir(output) as staging:
            folder = staging / output.name
            folder.mkdir()
            for name, content in files.items():
                with atomic_write(folder / name) as file:
                    file.write(content)
            folder.rename(output)
    except OSError as error:
        raise InputError(f"output {output} cannot be written: {error.strerror}.") from error


def format_of(kind: str) -> str:
    """Return what an export for other programs calls its format; `kind` is a key of FOR_OTHERS."""
    return f"{PACKAGE} {kind} 1"


def facts_for_others(kind: str, contents: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """Return facts about a checkpoint, which every export for other programs stores as JSON."""
    facts = {"format": format_of(kind), "version": version(PACKAGE)}
    return facts | _training_facts(contents, checkpoint)


def _training_facts(contents: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """Return the optimizer steps of a checkpoint, and its validation loss if it is a best.ckpt."""
    loss = _best_loss(checkpoint, contents)
    return {"global_step": contents.get("global_step", 0), "val_loss": loss}


def _best_loss(checkpoint: Path, contents: dict[str, Any]) -> float | None:
    """Return the validation loss of a best.ckpt, in nats; other files do not store it."""
    if checkpoint.name != "best.ckpt":
        return None
    try:
        states = contents["callbacks"].values()
        return float(next(s for s in states if s.get("monitor") == "val/loss")["best_model_score"])
    except Exception:  # someone edited the file; nothing else depends on this value
        return None


def _size(path: Path) -> int:
    """Return the bytes of the file that holds a checkpoint's weights."""
    return (path / WEIGHTS if path.is_dir() else path).stat().st_size


@contextmanager
def limit_parameters(path: Path) -> Iterator[None]:
    """Raise `InputError` when a network is built with more parameters than a checkpoint has bytes.

    Hyperparameters in a checkpoint can ask for any size. Parameters are counted as modules register
    them, when their memory is reserved but not yet used.
    """
    left = _size(path)
    message = "the checkpoint has too few weights for this network: do not change its size."

    def count(_module: Any, _name: str, parameter: torch.Tensor | None) -> None:
        nonlocal left
        left -= 0 if parameter is None else parameter.numel()
        if left < 0:
            raise InputError(message)

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error) or OVERFLOW in str(error).lower():  # sizes beyond 64 bits
            raise InputError(message) from error
        raise
    finally:
        hook.remove()


@contextmanager
def require_fitting(path: Path) -> Iterator[None]:
    """Raise `InputError` if a checkpoint's network cannot be built, or its weights do not fit it.

    Build the network and load its weights in this `with` block.
    """
    try:
        with limit_parameters(path):
            yield
    except Exception as error:  # damaged settings or weights can raise any exception
        raise_user_bug(error)
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"checkpoint {path} does not fit together: its settings and weights disagree "
            f"({reason}). Use another checkpoint."
        ) from error


def _with_current_class_paths(value: Any) -> Any:
    """Return nested hyperparameters in which moved classes have their present paths."""
    if isinstance(value, dict):
        updated = {key: _with_current_class_paths(part) for key, part in value.items()}
        path = str(updated.get("class_path")).split(".")
        if len(path) == 3 and path[0] == PACKAGE and path[1] in MOVED:
            updated["class_path"] = ".".join([PACKAGE, MOVED[path[1]], path[2]])
        return updated
    return [_with_current_class_paths(part) for part in value] if isinstance(value, list) else value
