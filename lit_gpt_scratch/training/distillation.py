"""Distillation: a network also learns what a trained network predicts.

Shapes: B texts, T positions, V alphabet size.
"""

import hashlib
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt_scratch.checkpoints.network import load_network
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.training.hyperparameters import find_plugin


class Teacher:
    """A trained network whose probabilities another network, the student, learns.

    The text says which character comes next. The teacher also says how likely all others are, and
    so tells the student more about each position (Hinton et al. 2015, arXiv 1503.02531). If the
    teacher is an ensemble, one student comes close to it (Kim et al. 2025, arXiv 2509.14786).

    Args:
        path: Its checkpoint: a .ckpt file or an exported folder.
        weight: Weight of its loss, from 0 to 1; the text's loss has the rest.
        temperature: Divides the logits of both networks. Above 1, unlikely characters count more.

    Raises `InputError` for a value out of range.
    """

    def __init__(self, path: str, weight: float, temperature: float) -> None:
        if not 0 <= weight <= 1:
            raise InputError(f"teacher_weight is {weight}: it must be from 0 to 1.")
        if not 0 < temperature < math.inf:
            raise InputError(f"teacher_temperature is {temperature}: it must be above 0.")
        self.path, self.weight, self.temperature = Path(path), weight, temperature
        self.net: nn.Module | None = None  # until `load`
        self.sha256 = ""  # of its weights
        self.data: dict[str, Any] = {}  # hyperparameters of its data module

    def load(self, alphabet: str, context: int, plugin: str | None) -> None:
        """Load the network. A second call does nothing. Training does not change the network.

        Raises `InputError` if its alphabet is another one, or if its context is shorter.
        """
        if self.net is not None:
            return
        try:
            net, known, longest, self.data = load_network(self.path, plugin)
        except InputError as error:
            raise InputError(f"teacher: {error}") from error
        if known != alphabet:
            raise InputError(
                f"teacher {self.path} was trained on other characters ({len(known)}, the corpus "
                f"has {len(alphabet)}): give a teacher that was trained on the same corpus."
            )
        if longest < context:
            raise InputError(
                f"teacher {self.path} was trained with a context of {longest}: give --data.context "
                f"{longest} or less."
            )
        self.net = net.requires_grad_(False)
        digest = hashlib.sha256()
        for weight in net.state_dict().values():
            digest.update(weight.contiguous().view(torch.uint8).numpy())
        self.sha256 = digest.hexdigest()

    def mix(self, data_loss: Tensor, logits: Tensor, ids: Tensor) -> Tensor:
        """Return the mean of the text's loss and the teacher's, by their weights.

        The teacher's loss is the cross-entropy between the teacher's probabilities for ids (B, T)
        and the student's logits (B, T, V). It is multiplied by the temperature squared: otherwise
        a higher temperature would make the gradients smaller.
        """
        assert self.net is not None
        with torch.no_grad():
            teacher_logits = self.net(ids).flatten(0, 1).float()  # (B * T, V)
        targets = (teacher_logits / self.temperature).softmax(-1)
        student_logits = logits.flatten(0, 1).float() / self.temperature
        loss = F.cross_entropy(student_logits, targets) * self.temperature**2
        return self.weight * loss + (1 - self.weight) * data_loss


class LoadTeacher(Callback):
    """Loads the teacher, if there is one, before training. Refuses to resume with another one."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._teacher: Teacher | None = pl_module.teacher
        if self._teacher and stage == "fit":
            plugin = find_plugin(pl_module.hparams)
            self._teacher.load(pl_module.tokenizer.alphabet, pl_module.context, plugin)
            if trainer.datamodule and trainer.is_global_zero:
                warn_of_other_splits(self._teacher.data, trainer.datamodule.hparams)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if self._teacher and self._teacher.net:
            self._teacher.net.to(pl_module.device)

    def state_dict(self) -> dict[str, Any]:
        return {"sha256": self._teacher.sha256} if self._teacher else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._teacher and state_dict.get("sha256") not in (None, self._teacher.sha256):
            raise InputError(
                f"teacher {self._teacher.path} has other weights than when this run began: give "
                "the old file, or start a new run."
            )


def warn_of_other_splits(teachers: Mapping[str, Any], students: Mapping[str, Any]) -> None:
    """Print a notice if the teacher may have been trained on the student's validation split."""
    for name in ("val_fraction", "test_fraction"):
        before, now = teachers[name], students.get(name, teachers[name])
        if teachers["sha256"] == students.get("sha256") and now != before:
            print(
                f"Notice: {name} is {now}, for the teacher it was {before}: the teacher may have "
                "been trained on validation text.",
                file=sys.stderr,
            )
