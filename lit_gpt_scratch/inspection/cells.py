"""Draws tensors as coloured cells with matplotlib: what the functions in `plots` share.

Shapes: T characters of a text, R rows and N columns of cells.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import FuncNorm, Normalize, PowerNorm
from matplotlib.font_manager import fontManager
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from torch import Tensor

from lit_gpt_scratch.inspection.drawing import visible

CELL = 0.3  # side in inches of a cell that holds one character
ZOOM = 1.25  # of all figures, so that a class can read them
FRAME = "#d55e00"

# Fallback fonts, tried in order for each glyph; the last one has a placeholder for every script.
SCRIPTS = ["DejaVu Sans", "Noto Sans Mono CJK SC", "Noto Sans CJK SC", "PingFang SC"]
SCRIPTS += ["Microsoft YaHei", "Noto Emoji", "Segoe UI Emoji", "Last Resort High-Efficiency"]
FONTS = ["monospace", *(name for name in SCRIPTS if name in fontManager.get_font_names())]
MONO: Any = {"family": FONTS, "ha": "center", "va": "center"}


def new_grid(rows: int, columns: int, width: float, height: float, **options: Any) -> Any:
    """Create a figure, sized in inches, and its axes (rows, columns)."""
    dpi = ZOOM * mpl.rcParams["figure.dpi"]
    return plt.subplots(
        rows, columns, figsize=(width, height), layout="constrained", squeeze=False, dpi=dpi,
        **options,
    )  # fmt: skip


def new_axes(width: float, height: float) -> Axes:
    """Create a figure, sized in inches, with room for a title and a colour bar's label."""
    return new_grid(1, 1, max(width, 5), max(height, 2.2))[1][0, 0]


def signed_scale(values: Tensor) -> Normalize:
    """Return a scale from -m to m, where m is the largest absolute value; NaN is left out.

    Colours follow the square root, so that one large value does not make all others pale.
    """
    most = values.nan_to_num().abs().max().item() or 1.0
    functions = lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda x: np.sign(x) * x**2
    return FuncNorm(functions, -most, most)


def draw(
    axes: Axes, values: Tensor, colours: str, scale: Normalize, blank: str = "0.88"
) -> AxesImage:
    """Draw values (R, N) as cells; NaN cells have the colour `blank`."""
    palette = mpl.colormaps[colours].with_extremes(bad=blank)
    image = axes.imshow(values.float().cpu().numpy(), palette, scale, aspect="auto")
    axes.tick_params(length=0)
    return image


def write_cells(axes: Axes, image: AxesImage, written: Sequence[Sequence[str]]) -> None:
    """Write a text in each cell: black on light cells, white on dark ones."""
    values: Any = image.get_array()
    light = image.to_rgba(values)[..., :3] @ (0.299, 0.587, 0.114)
    for row, line in enumerate(written):
        for column, text in enumerate(line):
            ink = "black" if light[row, column] > 0.5 else "white"
            axes.text(column, row, visible(text), color=ink, **MONO)


def label_characters(axes: Axes, text: str, size: int = 10, both: bool = False) -> None:
    labels = list(visible(text))
    for axis in (axes.xaxis, axes.yaxis)[: 1 + both]:
        axis.set_ticks(range(len(text)), labels, family=FONTS, fontsize=size)


def scale_of_weights(weights: Tensor) -> tuple[str, Normalize]:
    """Return a colour map and a scale for attention weights. Negative weights get other colours."""
    if (weights < 0).any():
        return "RdBu", signed_scale(weights)
    # From 0 to 1, so that models can be compared; the square root, because weights are small over a
    # long text. Weights that are no probabilities may be larger.
    return "Blues", PowerNorm(0.5, 0, max(1.0, weights.max().item()))


def draw_weights(
    axes: Axes, weights: Tensor, text: str, size: int, look: tuple[str, Normalize]
) -> AxesImage:
    """Draw attention weights (T, T) with colours and a scale; the future is grey."""
    future = torch.ones_like(weights, dtype=torch.bool).triu(1)
    image = draw(axes, weights.masked_fill(future, torch.nan), *look)
    axes.set_aspect("equal")
    label_characters(axes, text, size, both=True)
    return image


def draw_predictions(
    axes: Axes | None, probabilities: Tensor, ids: Tensor, text: str, alphabet: str, rows: list[str]
) -> Axes:
    """Draw predicted characters (R, T), with a frame around each that equals the next one."""
    axes = axes or new_axes(2.5 + CELL * len(text), 1.4 + CELL * len(rows))
    image = draw(axes, probabilities, "Blues", Normalize(0, 1))
    written = [[alphabet[i] for i in row] for row in ids.tolist()]
    write_cells(axes, image, written)
    for row, line in enumerate(written):
        for column, (predicted, actual) in enumerate(zip(line, text[1:], strict=False)):
            if predicted == actual:
                corner = (column - 0.45, row - 0.45)
                axes.add_patch(Rectangle(corner, 0.9, 0.9, fill=False, ec=FRAME, lw=1.8))
    label_characters(axes, text)
    axes.set_xlabel("input character")
    axes.set_yticks(range(len(rows)), rows)
    axes.figure.colorbar(image, ax=axes, label="probability")
    return axes


def draw_text(
    values: Tensor, text: str, columns: int, axes: Axes | None,
    colours: str, scale: Normalize, label: str,
) -> Axes:  # fmt: skip
    """Draw a text as cells coloured by values (T,); lines end at a newline or after `columns`."""
    lines: list[list[int]] = [[]]
    for i in range(len(text)):
        if len(lines[-1]) == columns or (i and text[i - 1] == "\n"):
            lines.append([])
        lines[-1].append(i)
    cells = values.new_full((len(lines), max(map(len, lines))), torch.nan)
    for row, line in zip(cells, lines, strict=True):
        row[: len(line)] = values[line]
    axes = axes or new_axes(1.5 + 0.15 * cells.size(1), 0.8 + 0.27 * len(lines))
    image = draw(axes, cells, colours, scale, blank="white")
    write_cells(axes, image, [[text[i] for i in line] for line in lines])
    axes.set(xticks=[], yticks=[], frame_on=False)
    axes.figure.colorbar(image, ax=axes, label=label)
    return axes
