"""Builds the network of a checkpoint without Lightning."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from lit_gpt_scratch.checkpoints.formats import read_checkpoint, require_fitting

PREFIX = "net."  # how the names of a network's weights begin in a checkpoint


class TrainedNetwork(NamedTuple):
    """A network in evaluation mode, and what it was trained with."""

    net: nn.Module
    alphabet: str
    context: int
    data: dict[str, Any]  # hyperparameters of the data module


def load_network(path: Path, plugin: str | None = None) -> TrainedNetwork:
    """Load the network of a .ckpt file or an exported folder, on the CPU.

    `plugin` is an imported module, or its file, whose classes the checkpoint may name. Raises
    `InputError` if the checkpoint is refused, or does not fit together.
    """
    checkpoint = read_checkpoint(path, plugin, for_training=False)
    hparams = checkpoint["hyper_parameters"]
    alphabet, context = hparams["alphabet"], hparams["context"]
    weights = checkpoint["state_dict"].items()
    with require_fitting(path):
        net = build(hparams["net"])(alphabet_size=len(alphabet), context=context)
        net.load_state_dict({name.removeprefix(PREFIX): weight for name, weight in weights})
    return TrainedNetwork(net.eval(), alphabet, context, checkpoint["datamodule_hyper_parameters"])


def build(settings: dict[str, Any]) -> Callable[..., Any]:
    """Return the factory that plain settings describe: a class path, and the class's arguments.

    `read_checkpoint` has checked that the path names an allowed class.
    """
    module, _, name = settings["class_path"].rpartition(".")
    arguments = {
        key: build(value) if isinstance(value, dict) else value
        for key, value in settings.get("init_args", {}).items()
    }
    network = getattr(import_module(module), name)
    if not issubclass(network, nn.Module):
        raise ValueError(f"{name} is no network")
    return partial(network, **arguments)
