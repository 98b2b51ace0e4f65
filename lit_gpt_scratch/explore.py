"""Looking inside a trained model, from outside: what a notebook calls.

Nothing here changes a network: hooks are put on, read, and taken off again.

Shapes: T time, H heads.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_gpt_scratch.checkpoint import import_plugin, read_checkpoint
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.module import LitCharLM

if TYPE_CHECKING:
    from matplotlib.axes import Axes

VISIBLE = str.maketrans({"\n": "⏎", " ": "␣", "\t": "⇥"})


class LayerAttention(NamedTuple):
    """The attention of one layer: its module's name in the network, and weights (H, T, T)."""

    layer: str
    weights: Tensor


def load(path: str | Path, plugin: str | None = None) -> LitCharLM:
    """The model of a checkpoint, from its path alone, on the CPU and without dropout.

    Args:
        path: A .ckpt file of `fit`.
        plugin: A module besides this package whose classes it may name; it is imported.

    Raises:
        InputError: The checkpoint is missing, damaged, or not one of ours.
    """
    import_plugin(plugin)
    read_checkpoint(Path(path), plugin)
    try:
        model = LitCharLM.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    except Exception as error:  # its parts contradict each other, in any of a hundred ways
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"checkpoint {path} does not fit together ({reason}).") from error
    return model.eval()


@torch.inference_mode()
def attention(model: LitCharLM, text: str) -> list[LayerAttention]:
    """How much each character of a text reads from each one before it, in every layer and head.

    Args:
        model: Of any rung that has attention.
        text: T characters, at most the context.

    Returns:
        For each layer, in the order they run, weights (H, T, T): row reads column, rows sum to 1.

    Raises:
        InputError: The model has no attention, or the text does not fit its context or alphabet.
    """
    if not 0 < len(text) <= model.context:
        raise InputError(
            f"the text has {len(text)} characters: it must have from 1 to {model.context}, "
            "the model's context."
        )
    found: list[LayerAttention] = []

    def hook(name: str) -> Any:
        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            weights: Any = module.weights
            found.append(LayerAttention(name, weights(inputs[0])[0]))

        return look

    layers = [(name, m) for name, m in model.net.named_modules() if hasattr(m, "weights")]
    if not layers:
        raise InputError(f"{type(model.net).__name__} has no attention to look at.")
    handles = [module.register_forward_pre_hook(hook(name)) for name, module in layers]
    try:
        model.net(model.tokenizer.encode(text)[None].to(model.device))
    finally:
        for handle in handles:
            handle.remove()
    return found


def plot_attention(weights: Tensor, text: str, axes: "Axes | None" = None) -> "Axes":
    """Draw one head's weights (T, T) over a text of T characters; a new line shows as ⏎.

    Args:
        weights: Row reads column.
        text: The characters, for both axes.
        axes: Where to draw; the default is a new figure.
    """
    from matplotlib import pyplot as plt

    if axes is None:
        size = 1.5 + 0.22 * len(text)
        _, axes = plt.subplots(figsize=(size, size), layout="constrained")
    image = axes.imshow(weights.float().cpu().numpy(), cmap="magma", vmin=0)
    labels = list(text.translate(VISIBLE))
    axes.set_xticks(range(len(text)), labels, family="monospace")
    axes.set_yticks(range(len(text)), labels, family="monospace")
    axes.set_xlabel("character read from")
    axes.set_ylabel("character that reads")
    axes.figure.colorbar(image, ax=axes, shrink=0.7, label="attention weight")
    return axes
