"""The mean loss of each split in validation and test, logged in three units."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torchmetrics import MeanMetric


class MeanLosses(nn.ModuleDict):
    """The mean loss of each split, over all batches and processes.

    `val_strided` and `test_strided` are the splits of `--data.stride`. They are logged only if
    there are such batches.
    """

    def __init__(self) -> None:
        splits = ("val", "train sample", "test", "val_strided", "test_strided")
        super().__init__({split: MeanMetric() for split in splits})

    def add(self, split: str, losses: Tensor) -> None:
        """Add losses of any shape, in nats; there may be none."""
        mean = losses.mean() if losses.numel() else losses.sum()
        self._metric(split).update(mean, weight=losses.numel())

    def take(self, split: str) -> Tensor:
        """Return the mean loss of a split, and begin anew; NaN if there were no losses."""
        loss: Tensor = self._metric(split).compute()
        self._metric(split).reset()
        return loss

    def log(self, log: Callable[..., None], split: str) -> Tensor:
        """Log the loss of a split, and that of its strided evaluation, if there is one."""
        loss = self.take(split)
        log(f"{split}/loss", loss, prog_bar=True)
        log(f"{split}/bpc", loss / math.log(2))
        log(f"{split}/perplexity", loss.exp())
        strided = f"{split}_strided"
        if strided in self and self._metric(strided).update_called:
            self.log(log, strided)
        return loss

    def _metric(self, split: str) -> Any:
        return self[split]
