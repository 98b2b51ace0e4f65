"""What holds where several processes train as one: who speaks, and who ends when."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator

from lightning.fabric.utilities.rank_zero import rank_zero_only

from lit_gpt_scratch.errors import InputError

PATIENCE = 10.0  # seconds that the first process has to end in, with its last word


def is_first_process() -> bool:
    """Whether this process is the one that writes, also before the Trainer knows."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def end_with_starter() -> None:
    """End this process soon after the one that started it, if it is one of several.

    Lightning's first process starts the others, torchrun starts all: both name their rank. Else
    those that are left would wait for what is gone, for half an hour.
    """
    if "LOCAL_RANK" not in os.environ:
        return
    starter = os.getppid()

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
            text = " ".join(str(error).split())[:200]
            raise InputError(
                f"another process of this run has ended, or is stuck: {text}"
            ) from error
        raise
