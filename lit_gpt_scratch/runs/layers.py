"""Logs what happens in each layer: gradient norms, sizes of updates, entropy of attention."""

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from lit_gpt_scratch.errors import describe_error
from lit_gpt_scratch.inspection import attention
from lit_gpt_scratch.models.attention import shows_weights
from lit_gpt_scratch.training.callbacks import is_log_step
from lit_gpt_scratch.training.sharding import total_norm

TEXT_LENGTH = 32  # characters whose attention is measured and drawn
# The layer of a parameter: its name up to the first number, else the first part of the name.
LAYER = re.compile(r".*?\.\d+|[^.]+")


class LayerStatistics(Callback):
    """Logs three values of each layer at each validation. It changes nothing in training.

    layer_grad_norm/LAYER: 2-norm of the gradients before clipping, at the last logged step.
    update_ratio/LAYER: 2-norm of that step's change of the weights over the norm of the weights.
    attention_entropy/LAYER: mean entropy in nats of the attention weights, over heads and
        positions, on the first characters of the validation text. 0: each position reads one
        character. Left out if the weights are no probabilities.
    """

    def __init__(self) -> None:
        self.values: dict[str, float] = {}  # norms and ratios of the last logged step
        self._before: dict[str, list[Tensor]] = {}  # the weights before that step
        self._has_failed = False

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.values = {str(name): float(value) for name, value in state_dict["values"].items()}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if not is_log_step(trainer, trainer.global_step + 1):
            return
        with self._noticing_errors(trainer):
            for layer, parameters in layers(pl_module.net).items():
                gradients = [p.grad for p in parameters if p.grad is not None]
                self.values[f"layer_grad_norm/{layer}"] = float(total_norm(gradients))
                self._before[layer] = [p.clone() for p in parameters]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        before, self._before = self._before, {}
        with self._noticing_errors(trainer):
            for layer, parameters in layers(pl_module.net).items() if before else ():
                changes = [p - old for p, old in zip(parameters, before[layer], strict=True)]
                ratio = total_norm(changes) / total_norm(before[layer]).clamp(min=1e-12)
                self.values[f"update_ratio/{layer}"] = float(ratio)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        with self._noticing_errors(trainer):
            pl_module.log_dict(self.values | attention_entropies(trainer, pl_module))

    @contextlib.contextmanager
    def _noticing_errors(self, trainer: Any) -> Iterator[None]:
        """If this `with` block fails, print one notice. Training continues."""
        try:
            with torch.no_grad():
                yield
        except Exception as error:  # for example, a new attention may not return weights
            if not self._has_failed and trainer.is_global_zero:
                notice = f"Notice: statistics of layers are not logged ({describe_error(error)})."
                print(notice, file=sys.stderr)
            self._has_failed = True


def layers(net: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the parameters of each layer, such as embed, blocks.0 and unembed."""
    found: dict[str, list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        layer = LAYER.match(name)
        found.setdefault(layer[0] if layer else name, []).append(parameter)
    return found


def start_of_validation(data: Any) -> str:
    """Return the first characters of the validation text."""
    start = data.splits.val.start
    ids = data.tokens[start : start + min(TEXT_LENGTH, data.context)]
    return str(data.tokenizer.decode(ids.cpu()))


def attention_entropies(trainer: Any, pl_module: Any) -> dict[str, float]:
    """Return the mean entropy of the attention weights of each layer; empty: there are none."""
    if not shows_weights(pl_module.net):
        return {}
    found: dict[str, list[float]] = {}
    for name, weights in attention(pl_module, start_of_validation(trainer.datamodule)):
        module = pl_module.net.get_submodule(name)
        if not getattr(module, "weights_sum_to_1", True) or (weights < 0).any():
            continue  # they are no probabilities, and have no entropy
        entropy = -torch.special.xlogy(weights, weights).sum(-1).mean()
        layer = LAYER.match(name)
        found.setdefault(f"attention_entropy/{layer[0] if layer else name}", []).append(
            float(entropy)
        )
    return {name: sum(values) / len(values) for name, values in found.items()}
