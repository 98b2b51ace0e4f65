"""Coordination between processes: only rank 0 reports, and all ranks stop together."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.private_api import LOST_PROCESS, has_worker_processes

PARENT = "LIT_GPT_SCRATCH_PARENT"  # environment variable: the process that started the ranks
GRACE_SECONDS = 10.0  # time that rank 0 has to report an error and to end
# Settings that all processes of a run must share.
DATA = (
    "sha256", "alphabet", "context", "batch_size", "seed", "order", "val_fraction", "test_fraction"
)  # fmt: skip
STEPS = ("max_steps", "accumulate_grad_batches", "val_check_interval", "log_every_n_steps")


def is_rank_zero() -> bool:
    """Return whether this process is the one that writes; known also before the Trainer exists."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


@contextlib.contextmanager
def exit_with_parent() -> Iterator[None]:
    """End this process soon after its parent process has ended, as long as the `with` block runs.

    Lightning's rank 0 starts the other ranks, torchrun starts all; both set LOCAL_RANK. Without
    this, the surviving ranks would wait for half an hour. A run that `compare` has started saves
    first. The environment is restored at the end.
    """
    is_rank, given = "LOCAL_RANK" in os.environ, os.environ.get(PARENT)
    # getppid() is already wrong if the parent ended during start-up; the variable has its id.
    parent = int(given or os.getppid())
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            if os.getppid() != parent:
                if is_rank:
                    os._exit(1)
                os.kill(os.getpid(), signal.SIGTERM)  # `fit` finishes its step, and saves
                return

    if is_rank or given:
        threading.Thread(target=watch, daemon=True).start()
    if not is_rank:
        os.environ[PARENT] = str(os.getpid())  # for ranks that Lightning starts from here
    try:
        yield
    finally:
        done.set()
        if not is_rank:
            os.environ.pop(PARENT)
            os.environ.update({PARENT: given} if given else {})


@contextlib.contextmanager
def report_errors_once() -> Iterator[None]:
    """If all ranks have an error, let rank 0 report it and end the run; the others wait 10 s.

    Raises:
        InputError: This process has lost the connection to another one.
    """
    try:
        yield
    except Exception as error:
        if not is_rank_zero():
            time.sleep(GRACE_SECONDS)
        if isinstance(error, RuntimeError) and any(word in str(error) for word in LOST_PROCESS):
            reason = " ".join(str(error).split()).partition(". ")[0][:200]
            raise InputError(f"another process has ended, or hangs ({reason}).") from error
        raise


@contextlib.contextmanager
def follow_workers(trainer: Any) -> Iterator[None]:
    """In this `with` block, pass SIGTERM to the workers, and take over their exit code and errors.

    With strategies such as ddp_spawn, worker processes train while this process waits.
    """
    if not has_worker_processes(trainer):
        yield
        return
    is_main_thread = threading.current_thread() is threading.main_thread()
    launcher, before = trainer.strategy.launcher, signal.getsignal(signal.SIGTERM)
    if is_main_thread:
        signal.signal(signal.SIGTERM, lambda number, _: launcher.kill(number))
    try:
        yield
    except ProcessExitedException as error:
        raise SystemExit(error.exit_code) from error
    except ProcessRaisedException as error:  # its text is the worker's traceback
        last_line = str(error).rstrip().rpartition("\n")[2]
        if last_line.startswith(name := f"{InputError.__module__}.{InputError.__name__}: "):
            raise InputError(last_line.removeprefix(name)) from error
        raise
    finally:
        for process in launcher.procs:
            process.join(GRACE_SECONDS)  # after Ctrl-C they are still saving
        if is_main_thread:
            signal.signal(signal.SIGTERM, before)


def cpu_group(trainer: Any) -> Any:
    """Return a group of all processes, to communicate without a GPU; None: there is only one."""
    return torch.distributed.new_group(backend="gloo") if trainer.world_size > 1 else None


def maxima(numbers: Sequence[int], group: Any) -> list[int]:
    """Return the largest value of each number over the processes of `cpu_group`.

    Each process waits for the others, but not for its GPU.
    """
    values = torch.tensor(numbers)
    if group is not None:
        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX, group)
    return values.tolist()


class RankConsistencyCheck(Callback):
    """Refuses to train if the processes differ in the settings `DATA` and `STEPS`, or in the step.

    Each machine opens its own files and reads its own flags. Different ones would make the ranks
    wait for each other without end, or train on different texts without notice.
    """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        data = trainer.datamodule.hparams
        own = {f"data.{name}": data[name] for name in DATA}
        own |= {f"trainer.{name}": getattr(trainer, name) for name in STEPS}
        own |= {"the step to resume from": trainer.global_step}
        of_rank_zero = trainer.strategy.broadcast(own)
        different = [name for name, value in own.items() if value != of_rank_zero[name]]
        if not trainer.strategy.reduce_boolean_decision(not different, all=True):
            where = f" here: {', '.join(different)}" if different else " on another machine"
            raise InputError(
                f"the processes of this run differ{where}. Start all with the same flags, text and "
                "checkpoint."
            )
