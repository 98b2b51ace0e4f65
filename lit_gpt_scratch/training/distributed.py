"""What holds where several processes train as one: who speaks, and who ends when."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback

from lit_gpt_scratch.errors import InputError

PARENT = "LIT_GPT_SCRATCH_PARENT"
PATIENCE = 10.0  # seconds that the first process has to end in, with its last word
# What processes that train as one must agree on.
DATA = ("sha256", "alphabet", "context", "batch_size", "seed", "val_fraction", "test_fraction")
STEPS = ("max_steps", "accumulate_grad_batches", "val_check_interval", "log_every_n_steps")


def is_first_process() -> bool:
    """Whether this process is the one that writes, also before the Trainer knows."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


@contextlib.contextmanager
def exit_with_parent() -> Iterator[None]:
    """While this is open, end this process soon after the one that started it as a rank.

    Lightning's first process starts the others, torchrun starts all: both set LOCAL_RANK. Otherwise
    the surviving ranks would hang for half an hour.
    """
    if "LOCAL_RANK" not in os.environ:
        before = os.environ.get(PARENT)
        os.environ[PARENT] = str(os.getpid())  # for ranks that Lightning starts from here
        try:
            yield
        finally:
            del os.environ[PARENT]
            if before is not None:
                os.environ[PARENT] = before
        return
    # The parent may have ended while this process was loading.
    parent = int(os.environ.get(PARENT, os.getppid()))
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            if os.getppid() != parent:
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


@contextlib.contextmanager
def errors_once() -> Iterator[None]:
    """Let the first process say what ends all: the others wait for their end, and speak after it.

    Raises:
        InputError: This process lost another.
    """
    try:
        yield
    except Exception as error:
        if not is_first_process():
            time.sleep(PATIENCE)
        if isinstance(error, RuntimeError) and ("gloo" in str(error) or "NCCL" in str(error)):
            reason = " ".join(str(error).split()).partition(". ")[0][:200]
            raise InputError(f"another process has ended, or is stuck ({reason}).") from error
        raise


class SameEverywhere(Callback):
    """Refuses to train where a process was started with another text, batch or step.

    Each machine opens its own files and reads its own flags: else the others would wait for ever
    for what is not to come, or learn from another text without a word.
    """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        data = trainer.datamodule.hparams
        own = {f"data.{name}": data[name] for name in DATA}
        own |= {f"trainer.{name}": getattr(trainer, name) for name in STEPS}
        own |= {"the step to go on from": trainer.global_step}
        first = trainer.strategy.broadcast(own)
        others = [name for name, value in own.items() if value != first[name]]
        if not trainer.strategy.reduce_boolean_decision(not others, all=True):
            where = f" here: {', '.join(others)}" if others else " on another machine"
            raise InputError(
                f"the processes of this run differ{where}. Start all with the same flags, text and "
                "checkpoint."
            )
