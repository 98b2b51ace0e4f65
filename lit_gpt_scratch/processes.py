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

STARTER = "LIT_GPT_SCRATCH_STARTER"
PATIENCE = 10.0  # seconds that the first process has to end in, with its last word
# What processes that train as one must agree on.
DATA = ("sha256", "alphabet", "context", "batch_size", "seed", "val_fraction", "test_fraction")
STEPS = ("max_steps", "accumulate_grad_batches", "val_check_interval", "log_every_n_steps")


def is_first_process() -> bool:
    """Whether this process is the one that writes, also before the Trainer knows."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def end_with_starter() -> None:
    """End this process soon after the one that started it, if it is one of several.

    Lightning's first process starts the others, torchrun starts all: both name their rank. Else
    those that are left would wait for what is gone, for half an hour.
    """
    if "LOCAL_RANK" not in os.environ:
        os.environ[STARTER] = str(os.getpid())  # for those that Lightning starts from here
        return
    # It may have ended while this one was loading.
    starter = int(os.environ.get(STARTER, os.getppid()))

    def watch() -> None:
        while os.getppid() == starter:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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
