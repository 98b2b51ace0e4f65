"""Keeps what a command changes in its process inside the command."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from unittest.mock import patch

# Lightning's log shows warnings only, except in parts that report what a user has asked for.
LOG_LEVELS = dict.fromkeys(("lightning.pytorch", "lightning.fabric"), logging.WARNING)
ASKED_FOR = ("callbacks.early_stopping", "callbacks.model_summary", "profilers.profiler")
LOG_LEVELS |= {f"lightning.pytorch.{name}": logging.INFO for name in ASKED_FOR}


@contextlib.contextmanager
def restore_process_state() -> Iterator[None]:
    """Silence Lightning; at the end restore logging levels, warning filters and environment."""
    loggers = {logging.getLogger(name): level for name, level in LOG_LEVELS.items()}
    before = {logger: logger.level for logger in loggers}
    # Lightning adds PL_GLOBAL_SEED and other variables; `patch.dict` restores the environment.
    with warnings.catch_warnings(), patch.dict(os.environ):
        warnings.filterwarnings("ignore", module="lightning|torchmetrics")
        # PyTorch's advice to who changes the output of a layer in place; nothing here does.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        try:
            for logger, level in loggers.items():
                logger.setLevel(level)
            yield
        finally:
            for logger, level in before.items():
                logger.setLevel(level)
