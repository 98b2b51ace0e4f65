"""Draws all attention heads with Pillow, for the picture that training saves at each validation.

Shapes: H heads, T characters.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lit_gpt_scratch.inspection.hooks import LayerAttention

SIGNS = {"\n": "⏎", " ": "␣", "\t": "⇥", "\r": "↵"}
REPLACEMENT = "�"
SHADES = ("#f7fbff", "#08306b", "#6baed6")  # of no weight, of all weight, and between
NEGATIVE = "#fff5f0", "#67000d", "#fb6a4a"


def visible(text: str) -> str:
    """Return a text of the same length in which every character is printable.

    Whitespace becomes a sign of its own; every other unprintable character becomes `REPLACEMENT`.
    """
    return "".join(SIGNS.get(c, c if c.isprintable() else REPLACEMENT) for c in text)


def draw_heads(layers: Sequence[LayerAttention], text: str, cell: int = 9) -> Any:
    """Draw weights (H, T, T) of each layer in a row, and return a PIL image; `cell` is in pixels.

    Row t of a head shows what character t attends to. Darker cells are larger weights, on a
    square-root scale, which the bar at the bottom shows; weights above 1 are drawn as 1. Red ones
    are negative, grey cells are future characters. `plots.plot_heads` draws the same with
    matplotlib, with a scale that covers larger weights, in about 50 times as long.
    """
    import matplotlib as mpl  # Lightning has imported it already
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    # Pillow's own font has no glyphs for the signs of `visible`.
    font_file = Path(mpl.get_data_path(), "fonts/ttf/DejaVuSansMono.ttf")
    font = ImageFont.truetype(font_file, cell + 1)
    left, top, gap = 2 * cell, 4 * cell, 2 * cell
    side = cell * len(text)
    width, height = left + side + gap, top + side + gap
    heads = max(weights.size(0) for _, weights in layers)
    names = max(font.getlength(name) for name, _ in layers)
    size = max(heads * width, round(left + names), 18 * cell) + gap, len(layers) * height + 4 * cell
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    future = Image.fromarray(255 * torch.ones(len(text), len(text)).triu(1).byte().numpy())
    # The letters of all heads are the same, and slow to draw. So draw them once, as two masks.
    above = Image.new("L", (left + side + gap, 2 * cell))
    beside = Image.new("L", (left, side + 2 * cell))
    for i, character in enumerate(visible(text)):
        middle = i * cell + cell // 2
        ImageDraw.Draw(above).text((left + middle, cell), character, 255, font, "mm")
        ImageDraw.Draw(beside).text((left // 2, cell + middle), character, 255, font, "mm")
    for row, (name, layer_weights) in enumerate(layers):
        y = row * height
        pen.text((gap + left, y), name, "black", font)
        for head, weights in enumerate(layer_weights):
            x = head * width + gap
            pen.text((x + left, y + 5 * cell // 4), f"head {head}", "black", font)
            size = weights.float().cpu().abs().clamp(0, 1).sqrt()
            grey = Image.fromarray((255 * size).byte().numpy())
            heat_map = ImageOps.colorize(grey, *SHADES)
            negative = Image.fromarray((255 * (weights < 0).cpu()).byte().numpy())
            heat_map.paste(ImageOps.colorize(grey, *NEGATIVE), mask=negative)
            heat_map.paste("#e0e0e0", mask=future)
            heat_map = heat_map.resize((side, side), Image.Resampling.NEAREST)
            picture.paste(heat_map, (x + left, y + top))
            picture.paste("black", (x, y + top - 2 * cell), above)
            picture.paste("black", (x, y + top - cell), beside)
    # The scale.
    y, bar = len(layers) * height, 10 * cell
    ramp = Image.linear_gradient("L").rotate(90).resize((bar, cell))  # black at the left
    picture.paste(ImageOps.colorize(ramp, *SHADES), (gap + left, y))
    for weight in (0, 0.1, 0.5, 1):
        place = gap + left + bar * weight**0.5
        pen.text((place, y + 2 * cell), f"{weight:g}", "black", font, "mm")
    pen.text((gap + left + bar + cell, y + cell // 2), "weight", "black", font, "lm")
    return picture.quantize(64, Image.Quantize.FASTOCTREE)
