"""Checks that a checkpoint from an unknown source is harmless plain data.

`torch.load(weights_only=True)` runs no code from a file, but a hostile file can still exhaust
memory or time, or crash the process: with compressed records, a tensor that repeats one number a
billion times, a list that contains itself, or a key of deeply nested tuples, whose hash overflows
the stack. PyTorch also does not compare the archive's checksums.
"""

import importlib
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from lit_gpt_scratch.private_api import (
    CLASS_PATH_KEY,
    INSTANTIATOR,
    INSTANTIATOR_KEY,
    REBUILD_TENSOR,
    STATE_DICT_ATTRIBUTES,
    read_pickle,
    steps_in_loops,
)

# Opcodes in a pickle of plain data: CREATE pushes a new value, FILL adds to a container.
CREATE = {
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "GLOBAL", "BINPERSID", "REDUCE", "PROTO", "STOP",
}  # fmt: skip
FILL = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"}
KEYS = {"BINUNICODE", "BININT", "BININT1", "BININT2"}  # opcodes of keys that are quick to hash
ORDERED = "collections OrderedDict"
# Allowed functions: opcode of their arguments.
CALLS = {REBUILD_TENSOR: "TUPLE", ORDERED: "EMPTY_TUPLE"}
DTYPES = ["Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool"]
STORAGES = {f"torch {dtype}Storage" for dtype in DTYPES}

MAX_PICKLE_BYTES = 1 << 24  # everything except the numbers in tensors
MAX_VALUES, MAX_DEPTH = 1 << 20, 64


def require_plain_archive(path: Path) -> None:
    """Check, before it is loaded, that a file is what `torch.save` writes of plain data.

    Raises `pickle.UnpicklingError` for other contents, and other exceptions for a damaged file.
    """
    with path.open("rb") as file:
        start = file.read(2)
    if start != b"PK":
        raise pickle.UnpicklingError("not an archive")
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        packed = any(r.compress_type != zipfile.ZIP_STORED or r.flag_bits & 1 for r in records)
        if packed or sum(record.file_size for record in records) > path.stat().st_size:
            raise ValueError("compressed or overlapping records")
        if len({record.filename.lower() for record in records}) < len(records):
            raise ValueError("two records of one name")
        if damaged := archive.testzip():
            raise ValueError(f"record {damaged} is damaged")
    pickled = read_pickle(path)
    if pickled is None:
        raise pickle.UnpicklingError("TorchScript")
    if len(pickled) > MAX_PICKLE_BYTES:
        raise ValueError("too large")
    _require_plain_pickle(pickled)


def _require_plain_pickle(pickled: bytes) -> None:
    """Simulate a pickle without running it.

    The stack holds, for each value, the name of the opcode that made it; for a function its name,
    and for the result of a call that name with "()".
    """
    stack: list[Any] = []
    stacks_before_marks: list[list[Any]] = []
    memo: dict[Any, Any] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        name = opcode.name
        if name == "MARK":
            stacks_before_marks.append(stack)
            stack = []
        elif "GET" in name:
            stack.append(memo[argument])
        elif "PUT" in name:
            memo[argument] = stack[-1]
        elif count > MAX_VALUES or name not in CREATE | FILL:
            raise pickle.UnpicklingError(f"{name} is not plain data, or there is too much")
        else:
            if pickletools.stackslice in opcode.stack_before:
                items, stack = stack, stacks_before_marks.pop()  # SETITEMS: its dictionary stays
            else:
                rest = len(stack) - len(opcode.stack_before)
                items, stack = stack[rest:], stack[:rest]
            keys = {"SETITEM": items[1:2], "SETITEMS": items[::2]}.get(name, [])
            allowed = {
                "GLOBAL": argument in CALLS or argument in STORAGES,
                "REDUCE": CALLS.get(items[0]) == items[1] if name == "REDUCE" else True,
                "BUILD": items[:2] == [f"{ORDERED}()", "EMPTY_DICT"],
            }
            if not allowed.get(name, True) or not KEYS.issuperset(keys):
                raise pickle.UnpicklingError(f"{name} of {argument or items[:2]}")
            if name in ("APPEND", "SETITEM", "BUILD"):
                stack.append(items[0])
            elif name in CREATE:
                created = {"GLOBAL": argument, "REDUCE": f"{items[0]}()" if items else ""}
                stack.append(created.get(name, name))


def _nested(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every value nested in plain data, itself first, with its dictionary key or ''."""
    pending, count = [("", value, 0)], 0
    while pending:  # recursion would overflow on deep nesting
        key, value, depth = pending.pop()
        count += 1
        if depth > MAX_DEPTH or count + len(pending) > MAX_VALUES:
            raise ValueError("it has too many values, or nests them too deep")
        yield key, value
        if isinstance(value, dict):
            pending += ((str(name), part, depth + 1) for name, part in value.items())
        elif isinstance(value, list | tuple):
            pending += (("", part, depth + 1) for part in value)


def require_plain(value: Any, size: int) -> None:
    """Check that a loaded value is plain data, no larger than a file of `size` bytes can hold.

    Raises `ValueError` otherwise. A negative size forbids all tensors.
    """
    for _, part in _nested(value):
        if type(part) in (dict, OrderedDict):
            if not STATE_DICT_ATTRIBUTES.issuperset(getattr(part, "__dict__", ())):
                raise ValueError("it has a dictionary with attributes")
            if not all(type(key) in (str, int) for key in part):
                raise ValueError("it has a dictionary whose keys are not texts or integers")
        elif type(part) is torch.Tensor:
            size -= part.numel()
            if part.layout != torch.strided or part.device.type != "cpu" or size < 0:
                raise ValueError(
                    "its settings hold a tensor, or its tensors are larger than the file"
                )
        elif type(part) is int:
            if not -(1 << 63) <= part < 1 << 63:
                raise ValueError("it has a number of more than 64 bits")
        elif part is not None and type(part) not in (list, tuple, bool, float, str):
            raise ValueError(f"it has a {type(part).__name__}, which is not plain data")


def require_state_of_fit(checkpoint: dict[str, Any]) -> None:
    """Check that the values are such as `fit` writes; `require_classes_of` checks class paths.

    Raises `ValueError` if the loops would not continue at global_step, callbacks name files
    elsewhere, weights are not finite, or a key names code to run.
    """
    if not isinstance(checkpoint.get("global_step", 0), int):
        raise ValueError("its global_step is not a whole number")
    for key, state in _nested(checkpoint.get("loops", {})):
        is_count = isinstance(state, int) and 0 <= state < 1 << 53
        must_count = key in ("ready", "started", "processed", "completed")
        if not is_count and (must_count or not isinstance(state, dict | list)):
            raise ValueError(
                "its step counters are not all counts (the file was edited or damaged)"
            )
    try:
        agree = steps_in_loops(checkpoint["loops"]) == checkpoint["global_step"]
    except (KeyError, TypeError):
        agree = "loops" not in checkpoint  # exports have no loops
    if not agree:
        raise ValueError("its step counters disagree (the file was edited or damaged)")
    callbacks = checkpoint.get("callbacks", {})
    if isinstance(callbacks, dict):  # RunCheckpoint uses no path of its state
        callbacks = {k: v for k, v in callbacks.items() if not str(k).startswith("RunCheckpoint")}
    for key, state in _nested(callbacks):
        if key.endswith("_path") and not isinstance(state, str):
            raise ValueError("it holds a path that is not text")
        # ModelCheckpoint deletes the files that its state names; Lightning lets it do so only in
        # its own folder, except through `..`, through URLs, and through chained ones (`::`).
        for text in (key, state):
            is_text = isinstance(text, str)
            if is_text and re.search(r"(^|[\\/])\.\.([\\/]|$)|::|://|^data:", text):
                raise ValueError("it names files outside its run")
    weights = checkpoint["state_dict"].values()
    if not all(isinstance(w, torch.Tensor) and bool(w.isfinite().all()) for w in weights):
        raise ValueError("its weights are not all finite: use one from before training diverged")
    for part in ("hyper_parameters", "datamodule_hyper_parameters"):
        values = checkpoint[part]
        instantiator = values.get(INSTANTIATOR_KEY, INSTANTIATOR)
        if instantiator != INSTANTIATOR or CLASS_PATH_KEY in values:
            raise ValueError("it names code of its own to run")
    wandb_id = checkpoint.get("wandb_id")
    is_id = isinstance(wandb_id, str) and re.fullmatch("[A-Za-z0-9_-]{1,64}", wandb_id)
    if wandb_id is not None and not is_id:
        raise ValueError("its wandb_id is not the id of a W&B run")


def require_classes_of(hyper_parameters: dict[str, Any], modules: Sequence[str]) -> None:
    """Check that the model's hyperparameters name only classes of the given modules.

    jsonargparse may read any text as a class path, as YAML, or as the name of a config file. So
    every text must be the path of an allowed class, or `ValueError` is raised. With a plugin (a
    second module), lower-case words such as `gelu` are allowed, too.
    """
    for name in ("net", "optimizer", "schedule"):
        if not isinstance(hyper_parameters.get(name) or {}, dict):
            raise ValueError(f"its {name} is not a class with arguments")
    teacher = hyper_parameters.get("teacher")
    if teacher is not None and (
        not isinstance(teacher, str) or re.search(r"^[\\/]{2}|://", teacher)
    ):
        raise ValueError("its teacher is not the path of a file on this machine")
    # `fit` reads a teacher's file as it reads every checkpoint.
    for key, text in _nested(hyper_parameters | {"teacher": None}):
        is_own = key in ("alphabet", INSTANTIATOR_KEY) or (key, text) == ("compile", "auto")
        if is_own or not isinstance(text, str):
            continue
        is_word = len(modules) > 1 and key != "class_path" and re.fullmatch("[a-z0-9_-]*", text)
        is_harmless_word = is_word and not Path(text).exists()
        if not (is_harmless_word or _is_class_of(text, modules)):
            raise ValueError(
                f"it names {text!r}, which is not part of {modules[0]}: if you trust the module "
                "that it is from, name that module with --plugin"
            )


def _is_class_of(class_path: str, modules: Sequence[str]) -> bool:
    """Return whether a path names a class of one of the modules, or an optimizer of PyTorch."""
    allowed = tuple(f"{module}." for module in (*modules, "torch.optim"))
    module, _, name = class_path.rpartition(".")
    if not f"{module}.".startswith(allowed):
        return False
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception:  # no such module, or a malformed name
        return False
    if not isinstance(found, type) or not f"{found.__module__}.".startswith(allowed):
        return False
    is_of_torch = found.__module__.startswith("torch.")
    return not is_of_torch or issubclass(found, torch.optim.Optimizer | LRScheduler)
