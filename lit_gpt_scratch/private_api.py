"""Every use of a private name of a library, each with its reason.

Each has a test in tests/test_private_api.py that fails when the library changes. PyTorch is
imported only inside functions, so that commands without it start fast.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

# Lightning

# LightningCLI adds these keys to hyperparameters. A checkpoint may have the first, and this value.
INSTANTIATOR_KEY, CLASS_PATH_KEY = "_instantiator", "_class_path"
INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"


def set_logged_step(trainer: Any) -> None:
    """Set Lightning's logging step: it is one off after a resume at a validation's step."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


@contextmanager
def not_counting_next_batch(trainer: Any) -> Iterator[None]:
    """In this block, do not count the next batch, which Lightning marks as ready before its use."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    is_last, progress.is_last_batch = progress.is_last_batch, False
    for tracker in (progress.total, progress.current):
        tracker.ready -= 1
    yield
    for tracker in (progress.total, progress.current):
        tracker.ready += 1
    progress.is_last_batch = is_last


def stop_asking_for_sigterm(trainer: Any) -> None:
    """Let Lightning not ask rank 0 before each batch whether it has SIGTERM: a GPU would wait."""
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def has_worker_processes(trainer: Any) -> bool:
    """Return whether training runs in worker processes, as with ddp_fork and ddp_spawn."""
    from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


def steps_in_loops(loops: Any) -> Any:
    """Return the optimizer steps in a checkpoint's loops; KeyError or TypeError: another layout."""
    progress = loops["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]
    return progress["optimizer"]["step"]["total"]["completed"]


# jsonargparse and argparse


def errors_of_union(error: BaseException) -> list[BaseException]:
    """Return why each type of a Union refused a value; jsonargparse chains only the first error."""
    traceback = error.__traceback__
    while traceback and traceback.tb_next:
        traceback = traceback.tb_next
    frame = traceback.tb_frame if traceback else None
    if frame is None or not frame.f_globals["__name__"].startswith("jsonargparse."):
        return []
    return list(frame.f_locals.get("exceptions", []))


def options(parser: Any) -> list[Any]:
    """Return the options of a parser; argparse has no public way to change their help."""
    return parser._actions


# PyTorch

# Names in the pickle of `torch.save`, and the attribute of the dictionary of `state_dict()`.
REBUILD_TENSOR, STATE_DICT_ATTRIBUTES = "torch._utils _rebuild_tensor_v2", {"_metadata"}


def read_pickle(path: Path) -> bytes | None:
    """Return the pickle of an archive as `torch.load` finds it; None: there is none."""
    import torch

    reader = torch._C.PyTorchFileReader(str(path))
    return reader.get_record("data.pkl") if "data.pkl" in reader.get_all_records() else None


def foreach_lerp(starts: list[Any], ends: list[Any], weight: float) -> list[Any]:
    """Interpolate many tensors at once: on a GPU, one kernel instead of one per tensor."""
    import torch

    return list(torch._foreach_lerp(starts, ends, weight))


def foreach_lerp_(starts: list[Any], ends: list[Any], weight: float) -> None:
    """Interpolate in place."""
    import torch

    torch._foreach_lerp_(starts, ends, weight)


def foreach_add_(tensors: list[Any], others: list[Any], alpha: float) -> None:
    """Add `alpha` times another tensor to each of many tensors, in place."""
    import torch

    torch._foreach_add_(tensors, others, alpha=alpha)


def foreach_mul_(tensors: list[Any], factor: float) -> None:
    """Multiply in place."""
    import torch

    torch._foreach_mul_(tensors, factor)


def allow_clipping(optimizer: Any) -> None:
    """Let Lightning clip gradients; it refuses for fused optimizers, which may unscale them."""
    optimizer._step_supports_amp_scaling = False


def uncompiled() -> Any:
    """Return a context in which all networks run uncompiled, even those that were compiled.

    Do not import the compiler for this, which takes a second: without it, nothing is compiled.
    """
    import torch

    is_loaded = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if is_loaded else nullcontext()


def tolerate_failed_compilation() -> Any:
    """Return a context in which code that cannot be compiled runs uncompiled, after a warning."""
    import torch._dynamo

    return torch._dynamo.config.patch(suppress_errors=True)


def keep_compiled_code(folder: Path) -> None:
    """Let torch.compile keep its code in a folder, unless the user has chosen another one.

    Its default is a folder for temporary files. Importing Lightning sets the variable to it.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    variable = "TORCHINDUCTOR_CACHE_DIR"
    if os.environ.get(variable, default_cache_dir()) == default_cache_dir():
        os.environ[variable] = str(folder)


# W&B: by default, a killed run loses the rows of its last 15 seconds.
WANDB_FLUSH: dict[str, Any] = {"x_transaction_log_flush_interval": 0.1}

# Words in error texts, where a library has no exception type for the failure.
# In lower case; RuntimeError of PyTorch.
OUT_OF_MEMORY = ("allocate memory", "out of memory", "not enough memory", "bad_alloc")
FULL_DISK = "inline_container"  # a file of PyTorch: RuntimeError of torch.save
OVERFLOW = "overflow"  # in lower case; RuntimeError or TypeError for a size beyond integers
LOST_PROCESS = ("gloo", "NCCL")  # RuntimeError of torch.distributed
WRONG_WEIGHTS = "loading state_dict"  # RuntimeError of load_state_dict
