"""Plots the results of `hooks` with matplotlib; for notebooks.

Each function draws into `axes` if given, otherwise into a new figure, and returns what it drew
into. Darker means more. Where values have a sign, orange is positive and purple is negative.
Only `MAX_CHARACTERS` of a larger alphabet are drawn, evenly spaced.

Shapes: T characters of a text, R rows and N columns of cells, C channels, V alphabet size,
L layers, H heads, S stages of the residual stream.
"""

from collections.abc import Sequence
from typing import Any
from unicodedata import combining

import matplotlib as mpl
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, LogNorm, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle
from torch import Tensor
from torch.nn import functional as F

from lit_gpt_scratch.inspection.drawing import visible
from lit_gpt_scratch.inspection.hooks import LayerAttention, Lens, Trace

CELL = 0.3  # side in inches of a cell that holds one character
FRAME = "#d55e00"
COST = "rise of the loss,\nnats per character"
MAX_CHARACTERS = 120  # more could not be read in one plot
KINDS = {  # kinds of characters: (test, colour); the first true test decides
    "upper case": (str.isupper, "#0072b2"),
    "lower case": (str.islower, "#d55e00"),
    "other letter": (str.isalpha, "#cc79a7"),
    "digit": (str.isdigit, "#009e73"),
    "space, punctuation": (lambda _: True, "#000000"),
}


def plot_attention(weights: Tensor, text: str, axes: Axes | None = None) -> Axes:
    """Plot one head's weights (T, T): row t is the query, columns are keys, the future is grey."""
    side = 1.5 + 0.2 * len(text)
    axes = axes or _new_axes(side + 1, side)
    image = _draw_weights(axes, weights, text, size=9)
    axes.set(xlabel="attended character (key)", ylabel="attending character (query)")
    axes.figure.colorbar(image, ax=axes, shrink=0.7, label="attention weight")
    return axes


def plot_heads(layers: Sequence[LayerAttention], text: str) -> Figure:
    """Plot the result of `attention`: a row for each layer, a column for each head."""
    columns = max(len(layer.weights) for layer in layers)
    labelled = len(text) <= 32
    side = max(2.2, 0.13 * len(text) + 0.5) if labelled else 2.2
    size, rows = (2 + side * columns, 1 + side * len(layers)), len(layers)
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for row, layer in zip(grid, layers, strict=True):
        row[0].set_ylabel(layer.layer.removesuffix(".attention"))
        for head, (axes, weights) in enumerate(zip(row, layer.weights, strict=False)):
            image = _draw_weights(axes, weights, text if labelled else "", size=7)
            axes.set_title(f"head {head}", fontsize=10)
    figure.supxlabel("attended character (key)")
    figure.supylabel("attending character (query)")
    figure.colorbar(image, ax=grid, aspect=40, label="attention weight")
    return figure


def plot_next_characters(
    probabilities: Tensor, text: str, alphabet: str, top: int = 5, axes: Axes | None = None
) -> Axes:
    """Plot the most probable characters after each character, from probabilities (T, V)."""
    values, ids = probabilities.cpu().topk(min(top, len(alphabet)))
    ranks = [str(rank + 1) for rank in range(values.size(1))]
    axes = _draw_predictions(axes, values.T, ids.T, text, alphabet, ranks)
    axes.set(ylabel="rank", title="Predicted next characters (framed: correct)")
    return axes


def plot_token_losses(
    losses: Tensor, text: str, columns: int = 64, axes: Axes | None = None
) -> Axes:
    """Plot a text coloured by the loss (T - 1,) of each character; the first has none."""
    values, scale = F.pad(losses, (1, 0), value=torch.nan), Normalize(0, losses.max().item())
    axes = _draw_text(values, text, columns, axes, "YlOrRd", scale, "loss, nats")
    axes.set_title(f"Loss of each character: {losses.mean().item():.2f} nats on average")
    return axes


def plot_position_costs(
    costs: Tensor, text: str, columns: int = 64, axes: Axes | None = None
) -> Axes:
    """Plot a text coloured by the cost (T - 1,) of each character; the last has none."""
    values = F.pad(costs, (0, 1), value=torch.nan)
    axes = _draw_text(values, text, columns, axes, "PuOr_r", CenteredNorm(), COST)
    axes.set_title("Rise of the loss without each character")
    return axes


def plot_logit_lens(lens: Lens, text: str, alphabet: str, axes: Axes | None = None) -> Axes:
    """Plot the most probable next character at each stage, from the embedding upward."""
    values, ids = lens.probabilities.max(-1)
    axes = _draw_predictions(axes, values, ids, text, alphabet, lens.stages)
    axes.invert_yaxis()
    axes.set(ylabel="stage", title="Prediction at each stage (framed: correct)")
    return axes


def plot_costs(heads: Tensor, layers: Tensor, axes: Axes | None = None) -> Axes:
    """Plot costs of heads (L, H) and of layers (L,); the colour scale covers the heads only."""
    count, columns = heads.shape
    gap = heads.new_full((count, 1), torch.nan)
    costs = torch.cat([heads, gap, layers[:, None]], dim=1).cpu()
    axes = axes or _new_axes(2.5 + 0.8 * (columns + 2), 1.4 + 0.4 * count)
    scale = CenteredNorm(halfrange=heads.abs().max().item())
    image = _draw(axes, costs, "PuOr_r", scale, blank="white")
    _write(axes, image, [["" if c.isnan() else f"{c:+.3f}" for c in row] for row in costs])
    axes.set_xticks([*range(columns), columns + 1], [*map(str, range(columns)), "whole\nlayer"])
    axes.set_yticks(range(count))
    axes.set(xlabel="head", ylabel="layer", title="Rise of the loss without each part")
    axes.figure.colorbar(image, ax=axes, extend="both", label=COST)
    return axes


def plot_embeddings(rows: Tensor, alphabet: str, axes: Axes | None = None) -> Axes:
    """Plot embedding rows (V, C) in the plane of their first two principal components (PCA)."""
    shown, alphabet, title = _limit(alphabet, "Embeddings of the characters")
    rows = rows[shown].float().cpu()
    left, lengths, _ = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    places = F.pad(left * lengths, (0, 2))[:, :2]  # padded: one character has no components
    shares = F.pad(lengths.square(), (0, 2)) / lengths.square().sum().clamp_min(1e-30)
    axes = axes or _new_axes(7, 6)
    axes.update_datalim(places.tolist())
    axes.margins(0.06)
    kinds = [next(kind for kind, (holds, _) in KINDS.items() if holds(c)) for c in alphabet]
    for character, kind, (x, y) in zip(alphabet, kinds, places.tolist(), strict=True):
        axes.text(x, y, visible(character), color=KINDS[kind][1], fontsize=12, **_MONO)
    axes.set_xlabel(f"first principal component ({shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"second principal component ({shares[1]:.0%})")
    axes.set_title(title)
    axes.legend(handles=[Patch(color=c, label=k) for k, (_, c) in KINDS.items() if k in kinds])
    return axes


def plot_similarity(cosines: Tensor, alphabet: str, axes: Axes | None = None) -> Axes:
    """Plot cosine similarities (V, V) of the embeddings; the diagonal is grey."""
    shown, alphabet, title = _limit(alphabet, "Similarity of the embeddings")
    cosines = cosines[shown][:, shown]
    others = cosines.masked_fill(torch.eye(len(alphabet), device=cosines.device).bool(), torch.nan)
    side = 1.5 + 0.13 * len(alphabet)
    axes = axes or _new_axes(side + 1, side)
    image = _draw(axes, others, "PuOr_r", CenteredNorm())
    _label_characters(axes, alphabet, size=7, both=True)
    axes.set(xlabel="character", ylabel="character", title=title)
    axes.figure.colorbar(image, ax=axes, shrink=0.7, label="cosine similarity")
    return axes


def plot_trace(trace: Trace, text: str, position: int, character: str) -> Figure:
    """Plot the result of `trace`, which takes the same text, position and new character.

    Bars show the change of the prediction; cells below show each stage, on a logarithmic scale.
    """
    stages = len(trace.stages)
    heights = [1.6, CELL * stages] if stages else [1.6]
    figure, grid = plt.subplots(
        len(heights), 1, sharex=True, height_ratios=heights, squeeze=False, layout="constrained",
        figsize=(max(2.5 + CELL * len(text), 5), 1.3 + sum(heights)),
    )  # fmt: skip
    above, below = grid[0, 0], grid[-1, 0]
    above.bar(range(len(text)), trace.prediction.cpu().numpy(), color=KINDS["upper case"][1])
    above.set_ylabel("prediction,\nKL in nats")
    # A combining mark needs a base character; otherwise it joins the quotation mark before it.
    old, new = ("◌" * bool(combining(c)) + visible(c) for c in (text[position], character))
    title = f"Effect of replacing “{old}” at position {position} by “{new}”"
    above.set_title(title, family=["sans-serif", *_FONTS[1:]])
    if stages:
        # Zero has no logarithm: cells that did not change at all are grey.
        changes = trace.residual.where(trace.residual > 0, torch.nan)
        image = _draw(below, changes, "YlOrRd", LogNorm())
        below.invert_yaxis()
        below.set_yticks(range(stages), trace.stages)
        below.set_ylabel("stage")
        figure.colorbar(image, ax=list(grid.flat), label="relative change of\nthe residual stream")
    _label_characters(below, text)
    below.set_xlabel("input character")
    return figure


# Fallback fonts, tried in order for each glyph; the last one has a placeholder for every script.
_SCRIPTS = ["DejaVu Sans", "Noto Sans Mono CJK SC", "Noto Sans CJK SC", "PingFang SC"]
_SCRIPTS += ["Microsoft YaHei", "Noto Emoji", "Segoe UI Emoji", "Last Resort High-Efficiency"]
_FONTS = ["monospace", *(name for name in _SCRIPTS if name in fontManager.get_font_names())]
_MONO: Any = {"family": _FONTS, "ha": "center", "va": "center"}


def _new_axes(width: float, height: float) -> Axes:
    """Create a figure, sized in inches, with room for a title and a colour bar's label."""
    return plt.subplots(figsize=(max(width, 5), max(height, 2.2)), layout="constrained")[1]


def _limit(alphabet: str, title: str) -> tuple[list[int], str, str]:
    """Return the ids and characters to draw, and a title that says if some are left out."""
    size = len(alphabet)
    if size <= MAX_CHARACTERS:
        return list(range(size)), alphabet, title
    shown = [i * size // MAX_CHARACTERS for i in range(MAX_CHARACTERS)]
    return shown, "".join(alphabet[i] for i in shown), f"{title}: {MAX_CHARACTERS} of {size:,}"


def _draw(
    axes: Axes, values: Tensor, colours: str, scale: Normalize, blank: str = "0.88"
) -> AxesImage:
    """Draw values (R, N) as cells; NaN cells have the colour `blank`."""
    palette = mpl.colormaps[colours].with_extremes(bad=blank)
    image = axes.imshow(values.float().cpu().numpy(), palette, scale, aspect="auto")
    axes.tick_params(length=0)
    return image


def _write(axes: Axes, image: AxesImage, written: Sequence[Sequence[str]]) -> None:
    """Write a text in each cell: black on light cells, white on dark ones."""
    values: Any = image.get_array()
    light = image.to_rgba(values)[..., :3] @ (0.299, 0.587, 0.114)
    for row, line in enumerate(written):
        for column, text in enumerate(line):
            ink = "black" if light[row, column] > 0.5 else "white"
            axes.text(column, row, visible(text), color=ink, **_MONO)


def _label_characters(axes: Axes, text: str, size: int = 10, both: bool = False) -> None:
    labels = list(visible(text))
    for axis in (axes.xaxis, axes.yaxis)[: 1 + both]:
        axis.set_ticks(range(len(text)), labels, family=_FONTS, fontsize=size)


def _draw_weights(axes: Axes, weights: Tensor, text: str, size: int) -> AxesImage:
    """Draw attention weights (T, T) with the future greyed out."""
    future = torch.ones_like(weights, dtype=torch.bool).triu(1)
    square_root = PowerNorm(0.5, 0, 1)  # because weights are small over a long text
    image = _draw(axes, weights.masked_fill(future, torch.nan), "Blues", square_root)
    axes.set_aspect("equal")
    _label_characters(axes, text, size, both=True)
    return image


def _draw_predictions(
    axes: Axes | None, probabilities: Tensor, ids: Tensor, text: str, alphabet: str, rows: list[str]
) -> Axes:
    """Draw predicted characters (R, T), with a frame around each that equals the next one."""
    axes = axes or _new_axes(2.5 + CELL * len(text), 1.4 + CELL * len(rows))
    image = _draw(axes, probabilities, "Blues", Normalize(0, 1))
    written = [[alphabet[i] for i in row] for row in ids.tolist()]
    _write(axes, image, written)
    for row, line in enumerate(written):
        for column, (predicted, actual) in enumerate(zip(line, text[1:], strict=False)):
            if predicted == actual:
                corner = (column - 0.45, row - 0.45)
                axes.add_patch(Rectangle(corner, 0.9, 0.9, fill=False, ec=FRAME, lw=1.8))
    _label_characters(axes, text)
    axes.set_xlabel("input character")
    axes.set_yticks(range(len(rows)), rows)
    axes.figure.colorbar(image, ax=axes, label="probability")
    return axes


def _draw_text(
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
    axes = axes or _new_axes(1.5 + 0.15 * cells.size(1), 0.8 + 0.27 * len(lines))
    image = _draw(axes, cells, colours, scale, blank="white")
    _write(axes, image, [[text[i] for i in line] for line in lines])
    axes.set(xticks=[], yticks=[], frame_on=False)
    axes.figure.colorbar(image, ax=axes, label=label)
    return axes
