"""Loads a trained model from a checkpoint, for notebooks and for `export`."""

from pathlib import Path
from typing import Any

from lightning.pytorch.cli import instantiate_module

from lit_gpt_scratch.checkpoints.formats import read_checkpoint, require_fitting
from lit_gpt_scratch.checkpoints.plugins import import_plugin
from lit_gpt_scratch.private_api import INSTANTIATOR_KEY
from lit_gpt_scratch.training.module import LitCharLM


def build_model(checkpoint: dict[str, Any], path: Path) -> LitCharLM:
    """Build the model of a checkpoint's contents, on the CPU and in evaluation mode.

    Raises `InputError`, which names `path`, if the weights do not fit the settings.
    """
    arguments = dict(checkpoint["hyper_parameters"])
    arguments.pop(INSTANTIATOR_KEY, None)
    with require_fitting(path):
        model = instantiate_module(LitCharLM, arguments)
        model.load_state_dict(checkpoint["state_dict"])
    return model.eval()


def load(path: str | Path, plugin: str | None = None) -> LitCharLM:
    """Load a model from a .ckpt file or an exported folder, on the CPU and in evaluation mode.

    `plugin` is a module, or its file, whose classes the checkpoint may name; it is imported.
    Raises `InputError` if the checkpoint is missing or damaged, or not from this project.
    """
    import_plugin(plugin)
    path = Path(path)
    return build_model(read_checkpoint(path, plugin), path)
