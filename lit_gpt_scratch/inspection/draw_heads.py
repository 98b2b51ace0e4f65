"""Draws all attention heads with Pillow, ten times as fast as matplotlib."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from lit_gpt_scratch.inspection.explore import LayerAttention, visible


def draw_heads(layers: Sequence[LayerAttention], text: str, cell: int = 9) -> Any:
    """A grid of all heads' weights, a row for each layer, as a PIL image.

    As `plots.plot_heads` draws it: darker is more, on a square-root scale; grey is what is to come.
    Without matplotlib, which would take ten times as long, at every validation.

    Args:
        layers: Weights (H, T, T) each: row reads column.
        text: T characters, written along the sides.
        cell: Pixels of a weight.
    """
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    # Pillow's own font lacks the signs for what is invisible; matplotlib's is found without it.
    found = find_spec("matplotlib")
    assert found
    assert found.origin
    font_file = Path(found.origin).parent / "mpl-data/fonts/ttf/DejaVuSansMono.ttf"
    font = ImageFont.truetype(font_file, cell + 1)
    left, top, gap = 2 * cell, 4 * cell, 2 * cell
    side = cell * len(text)
    wide, high = left + side + gap, top + side + gap
    heads = max(weights.size(0) for _, weights in layers)
    picture = Image.new("RGB", (heads * wide + gap, len(layers) * high), "white")
    pen = ImageDraw.Draw(picture)
    future = Image.fromarray(255 * torch.ones(len(text), len(text)).triu(1).byte().numpy())
    for row, (name, weights) in enumerate(layers):
        for head, seen in enumerate(weights):
            x, y = head * wide + gap, row * high
            pen.text((x + left, y + cell // 2), f"{name}, head {head}", "black", font)
            grey = Image.fromarray((255 * seen.float().cpu().clamp(0, 1).sqrt()).byte().numpy())
            drawn = ImageOps.colorize(grey, "#f7fbff", "#08306b", "#6baed6")
            drawn.paste("#e0e0e0", mask=future)
            drawn = drawn.resize((side, side), Image.Resampling.NEAREST)
            picture.paste(drawn, (x + left, y + top))
            for i, character in enumerate(visible(text)):
                middle = i * cell + cell // 2
                pen.text((x + left + middle, y + top - cell), character, "black", font, "mm")
                pen.text((x + left // 2, y + top + middle), character, "black", font, "mm")
    return picture.quantize(64, Image.Quantize.FASTOCTREE)
