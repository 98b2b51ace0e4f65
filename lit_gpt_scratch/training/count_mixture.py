"""A callback that evaluates a network together with a model that only counts."""

from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lit_gpt_scratch.data.kneser_ney import KneserNey
from lit_gpt_scratch.errors import InputError


class CountMixture(Callback):
    """Logs `val/loss_with_counts` (or `test/...`): a network's loss with a count model mixed in.

    The probability of each character is (1 - weight) times the network's, plus weight times that of
    `KneserNey`, which counts the training text before the first evaluation. It reads what the
    network reads: the characters of a window. The network and its training do not change.

        lit-gpt-scratch validate --ckpt_path best --trainer.callbacks+=CountMixture

    A mixture is better than each of its parts where they make different errors. The defaults were
    chosen for `gpt_cpu` on a tenth held out of the training split.

    Args:
        order: Longest sequence of characters that is counted.
        weight: Weight of the count model, from 0 to 1.

    Raises `InputError` for a value out of range.
    """

    def __init__(self, order: int = 8, weight: float = 0.3) -> None:
        if not 0 <= weight <= 1:
            raise InputError(f"weight is {weight}: it must be from 0 to 1.")
        if order < 1:
            raise InputError(f"order is {order}: it must be at least 1.")
        self.order, self.weight = order, weight
        self.counts: KneserNey | None = None

    def mixed_losses(self, losses: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (B, T) of the mixture, from the network's. Ids are (B, T), too."""
        assert self.counts is not None
        windows = torch.cat([inputs[:, :1], targets], dim=1)
        counted = torch.from_numpy(self.counts.probabilities(windows.cpu().numpy()))
        own = losses.cpu().double().neg().exp()
        return -own.lerp(counted, self.weight).log()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        data = trainer.datamodule
        if self.counts is None:
            train = data.tokens[data.splits.train.start : data.splits.train.stop]
            self.counts = KneserNey(train.long().cpu().numpy(), len(data.alphabet), self.order)
        self._sums = torch.zeros(2, dtype=torch.float64)  # of the losses, and their number

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        if batch.split in ("val", "test") and batch.counted is None:  # else nothing counts
            mixed = self.mixed_losses(outputs["losses"], batch.inputs, batch.targets)
            self._sums += torch.stack([mixed.sum(), torch.tensor(mixed.numel())])

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._log("val", trainer, pl_module)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        self.on_validation_start(trainer, pl_module)

    def on_test_batch_end(self, *args: Any) -> None:
        self.on_validation_batch_end(*args)

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._log("test", trainer, pl_module)

    def _log(self, split: str, trainer: Any, pl_module: Any) -> None:
        sums = self._sums.float().to(pl_module.device)  # MPS has no doubles
        loss, count = trainer.strategy.reduce(sums, reduce_op="sum")
        pl_module.log(f"{split}/loss_with_counts", loss / count)
