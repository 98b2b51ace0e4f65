"""Loads a trained model from its checkpoint alone."""

from pathlib import Path
from typing import Any

from lightning.pytorch.cli import instantiate_module

from lit_gpt_scratch.checkpoints.reading import import_plugin, limit_parameters, read_checkpoint
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.training.module import LitCharLM


def build_model(checkpoint: dict[str, Any], path: Path) -> LitCharLM:
    """The model of a checkpoint that was read from a path, on the CPU and without dropout.

    Raises:
        InputError: Its parts do not fit together.
    """
    arguments = dict(checkpoint["hyper_parameters"])
    arguments.pop("_instantiator", None)
    try:
        with limit_parameters(path):
            model = instantiate_module(LitCharLM, arguments)
        model.load_state_dict(checkpoint["state_dict"])
    except Exception as error:  # its parts contradict each other, in any of a hundred ways
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"checkpoint {path} does not fit together: {reason}.") from error
    return model.eval()


def load(path: str | Path, plugin: str | None = None) -> LitCharLM:
    """The model of a checkpoint, from its path alone, on the CPU and without dropout.

    Args:
        path: A .ckpt file of `fit`, or the folder that `export` made of one.
        plugin: A module besides this package whose classes it may name; it is imported.

    Raises:
        InputError: The checkpoint is missing, damaged, or not one of ours.
    """
    import_plugin(plugin)
    path = Path(path)
    return build_model(read_checkpoint(path, plugin), path)
