"""Objects whose pickles run code when loaded; a reader of plain data must refuse them.

Each writes a marker file, so that a test can tell whether its code ran.
"""

import copyreg
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch


class RunsCommand:
    """Runs a shell command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"echo run > {self.marker}",)


class CallsEval(RunsCommand):
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({str(self.marker)!r}, 'w').close()",)


class CallsExec(RunsCommand):
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.marker)!r}, 'w').close()",)


class HasSetState(RunsCommand):
    """An ordinary instance, with a `__setstate__`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return copyreg.__newobj__, (HasSetState,), {"marker": self.marker}  # type: ignore[attr-defined]

    def __setstate__(self, state: dict[str, Any]) -> None:
        state["marker"].touch()


class Reconstructed(HasSetState):
    """Pickle protocol 0 builds objects with a function of copyreg."""

    def __reduce__(self) -> tuple[Any, ...]:
        make: Any = copyreg._reconstructor  # type: ignore[attr-defined]
        return make, (Reconstructed, object, None), {"marker": self.marker}


class InNumpyArray(RunsCommand):
    """A NumPy array of objects, one of which runs a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return np.array([RunsCommand(self.marker)], dtype=object).__reduce__()


class InTorchStorage(RunsCommand):
    """A PyTorch storage whose bytes are a pickle that runs a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        load: Any = torch.storage._load_from_bytes
        inner = io.BytesIO()
        torch.save(RunsCommand(self.marker), inner)
        return load, (inner.getvalue(),)


GADGETS: list[type[RunsCommand]] = [
    RunsCommand, CallsEval, CallsExec, HasSetState, Reconstructed, InNumpyArray, InTorchStorage,
]  # fmt: skip
