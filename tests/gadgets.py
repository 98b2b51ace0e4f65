"""Objects that run a command when anything but a reader of plain data unpickles them."""

import copyreg
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch


class RunsCommand:
    """Runs a command, which writes a marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"echo run > {self.marker}",)


class Evaluates(RunsCommand):
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({str(self.marker)!r}, 'w').close()",)


class Executes(RunsCommand):
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.marker)!r}, 'w').close()",)


class Wakes(RunsCommand):
    """An instance like any other, with a `__setstate__`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return copyreg.__newobj__, (Wakes,), {"marker": self.marker}  # type: ignore[attr-defined]

    def __setstate__(self, state: dict[str, Any]) -> None:
        state["marker"].touch()


class Reconstructed(Wakes):
    """As pickle's oldest protocol makes objects: by a function of copyreg."""

    def __reduce__(self) -> tuple[Any, ...]:
        make: Any = copyreg._reconstructor  # type: ignore[attr-defined]
        return make, (Reconstructed, object, None), {"marker": self.marker}


class OfNumpy(RunsCommand):
    """An array of objects, of which one runs a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return np.array([RunsCommand(self.marker)], dtype=object).__reduce__()


class Nested(RunsCommand):
    """A storage of PyTorch's, whose bytes are a file of their own."""

    def __reduce__(self) -> tuple[Any, ...]:
        load: Any = torch.storage._load_from_bytes
        inner = io.BytesIO()
        torch.save(RunsCommand(self.marker), inner)
        return load, (inner.getvalue(),)


GADGETS: list[type[RunsCommand]] = [
    RunsCommand, Evaluates, Executes, Wakes, Reconstructed, OfNumpy, Nested,
]  # fmt: skip
