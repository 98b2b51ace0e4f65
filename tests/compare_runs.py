"""Compares two runs: their checkpoints bit for bit, and the rows of their tables."""

import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TIMES = {"chars_per_sec", "mfu", "train_seconds"}


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def state(folder: Path) -> dict[str, Any]:
    """Return the parts of last.ckpt that must be bit-identical."""
    checkpoint = torch.load(last(folder), weights_only=True)
    names = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "unlogged")
    averages = [value for key, value in checkpoint.items() if "model_state" in key]
    return {name: checkpoint[name] for name in names} | {"averages": averages}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def tables(folder: Path) -> dict[str, list[dict[str, str]]]:
    """Return all rows of all CSV files, without the columns that measure time."""
    found = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        found[path.name] = [{k: v for k, v in row.items() if k not in TIMES} for row in rows]
    return found
