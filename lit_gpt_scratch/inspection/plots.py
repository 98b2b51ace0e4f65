"""Plots the results of `inspection` with matplotlib; for notebooks.

Each function draws into `axes` if given, otherwise into a new figure, and returns what it drew
into. Darker means more. Where values have a sign, orange is positive and purple is negative; of
attention weights with a sign, blue is positive and red is negative. A colour scale covers all
values that it shows.
Only `MAX_CHARACTERS` of a larger alphabet are drawn, evenly spaced.

Shapes: T characters of a text, R rows and N columns of cells, C channels, V alphabet size,
L layers, H heads, S stages of the residual stream.
"""

from collections.abc import Sequence
from unicodedata import combining

import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import CenteredNorm, LogNorm, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt_scratch.inspection.attribution import Attribution
from lit_gpt_scratch.inspection.cells import (
    CELL,
    FONTS,
    draw,
    draw_predictions,
    draw_text,
    draw_weights,
    label_characters,
    new_axes,
    new_grid,
    scale_of_weights,
    signed_scale,
    write_cells,
)
from lit_gpt_scratch.inspection.drawing import visible
from lit_gpt_scratch.inspection.embeddings import Merge, clusters
from lit_gpt_scratch.inspection.hooks import LayerAttention, Lens
from lit_gpt_scratch.inspection.patching import Patching, Trace

BLUE = "#0072b2"
STREAM = "residual stream"
COST = "rise of the loss,\nnats per character"
MAX_CHARACTERS = 100  # more could not be read in one plot
KINDS = {  # kinds of characters: (test, colour); the first true test decides
    "upper case": (str.isupper, BLUE),
    "lower case": (str.islower, "#d55e00"),
    "other letter": (str.isalpha, "#cc79a7"),
    "digit": (str.isdigit, "#009e73"),
    "space, punctuation": (lambda _: True, "#000000"),
}


def plot_attention(weights: Tensor, text: str, axes: Axes | None = None) -> Axes:
    """Plot one head's weights (T, T): row t is the query, columns are keys, the future is grey."""
    side = 1.5 + 0.2 * len(text)
    axes = axes or new_axes(side + 1, side)
    image = draw_weights(axes, weights, text, 11, scale_of_weights(weights))
    axes.set(xlabel="attended character (key)", ylabel="attending character (query)")
    axes.figure.colorbar(image, ax=axes, shrink=0.7, label="attention weight")
    return axes


def plot_heads(layers: Sequence[LayerAttention], text: str) -> Figure:
    """Plot the result of `attention`: a row for each layer, a column for each head.

    All heads have one colour scale.
    """
    look = scale_of_weights(torch.cat([layer.weights.flatten() for layer in layers]))
    columns = max(len(layer.weights) for layer in layers)
    labelled = len(text) <= 32
    side = max(2.2, 0.15 * len(text) + 0.5) if labelled else 2.2
    size = (2 + side * columns, 1 + side * len(layers))
    figure, grid = new_grid(len(layers), columns, *size)
    for row, layer in zip(grid, layers, strict=True):
        row[0].set_ylabel(layer.layer.removesuffix(".attention"))
        for head, (axes, weights) in enumerate(zip(row, layer.weights, strict=False)):
            image = draw_weights(axes, weights, text if labelled else "", 9, look)
            axes.set_title(f"head {head}")
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
    axes = draw_predictions(axes, values.T, ids.T, text, alphabet, ranks)
    axes.set(ylabel="rank", title="Predicted next characters (framed: correct)")
    return axes


def plot_token_losses(
    losses: Tensor, text: str, columns: int = 64, axes: Axes | None = None
) -> Axes:
    """Plot a text coloured by the loss (T - 1,) of each character; the first has none."""
    values = F.pad(losses, (1, 0), value=torch.nan)
    scale = PowerNorm(0.5, 0, losses.max().item())  # one large loss does not make all others pale
    axes = draw_text(values, text, columns, axes, "YlOrRd", scale, "loss, nats")
    axes.set_title(f"Loss of each character: {losses.mean().item():.2f} nats on average")
    return axes


def plot_position_costs(
    costs: Tensor, text: str, columns: int = 64, axes: Axes | None = None
) -> Axes:
    """Plot a text coloured by the cost (T - 1,) of each character; the last has none."""
    values = F.pad(costs, (0, 1), value=torch.nan)
    axes = draw_text(values, text, columns, axes, "PuOr_r", CenteredNorm(), COST)
    axes.set_title("Rise of the loss without each character")
    return axes


def plot_logit_lens(lens: Lens, text: str, alphabet: str, axes: Axes | None = None) -> Axes:
    """Plot the most probable next character at each stage, from the embedding upward."""
    values, ids = lens.probabilities.max(-1)
    axes = draw_predictions(axes, values, ids, text, alphabet, lens.stages)
    axes.invert_yaxis()
    axes.set(ylabel="stage", title="Prediction at each stage (framed: correct)")
    return axes


def plot_costs(heads: Tensor, layers: Tensor, axes: Axes | None = None) -> Axes:
    """Plot costs of heads (L, H) and of layers (L,)."""
    count, columns = heads.shape
    gap = heads.new_full((count, 1), torch.nan)
    costs = torch.cat([heads, gap, layers[:, None]], dim=1).cpu()
    axes = axes or new_axes(2.5 + 0.8 * (columns + 2), 1.4 + 0.4 * count)
    image = draw(axes, costs, "PuOr_r", signed_scale(costs), blank="white")
    write_cells(axes, image, [["" if c.isnan() else f"{c:+.3f}" for c in row] for row in costs])
    axes.set_xticks([*range(columns), columns + 1], [*map(str, range(columns)), "whole\nlayer"])
    axes.set_yticks(range(count))
    axes.set(xlabel="head", ylabel="layer", title="Rise of the loss without each part")
    axes.figure.colorbar(image, ax=axes, label=COST)
    return axes


def plot_similarity(cosines: Tensor, alphabet: str, title: str = "Similarity") -> Figure:
    """Plot cosines (V, V) of characters in the order of their `clusters`; the diagonal is grey.

    In the tree above, two groups join at the height of their similarity. Labels are coloured by the
    kind of the character.
    """
    shown, alphabet, title = _limit(alphabet, title)
    cosines = cosines[shown][:, shown].cpu()
    merges = clusters(cosines)
    order = merges[-1].left + merges[-1].right if merges else [0]
    ordered = cosines[order][:, order].fill_diagonal_(torch.nan)
    alphabet = "".join(alphabet[i] for i in order)
    side = 1 + 0.15 * len(alphabet)
    figure, grid = new_grid(2, 1, side + 1, side + 2, sharex=True, height_ratios=[2, side])
    above, below = grid[:, 0]
    image = draw(below, ordered, "PuOr_r", CenteredNorm())
    _draw_tree(above, merges, order)
    label_characters(below, alphabet, size=10, both=True)
    kinds = [next(kind for kind, (holds, _) in KINDS.items() if holds(c)) for c in alphabet]
    for axis in (below.xaxis, below.yaxis):
        for label, kind in zip(axis.get_ticklabels(), kinds, strict=True):
            label.set(color=KINDS[kind][1])
    below.set(xlabel="character", ylabel="character")
    above.set(ylabel="similarity\nof groups", title=title)
    handles = [Patch(color=c, label=k) for k, (_, c) in KINDS.items() if k in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    figure.colorbar(image, ax=list(grid.flat), shrink=0.6, aspect=30, label="cosine similarity")
    return figure


def plot_trace(trace: Trace, clean: str, corrupted: str) -> Figure:
    """Plot the result of `trace` for the same two texts.

    Bars show the difference of the predictions; cells below show each stage, on a logarithmic
    scale.
    """
    stages = len(trace.stages)
    heights = [1.6, CELL * stages] if stages else [1.6]
    size = max(2.5 + CELL * len(clean), 5), 1.5 + sum(heights)
    figure, grid = new_grid(len(heights), 1, *size, sharex=True, height_ratios=heights)
    above, below = grid[0, 0], grid[-1, 0]
    above.bar(range(len(clean)), trace.prediction.cpu().numpy(), color=BLUE)
    above.set(ylabel="prediction,\nKL in nats", title="Difference of the two runs")
    if stages:
        # Zero has no logarithm: cells that do not differ at all are grey.
        changes = trace.residual.where(trace.residual > 0, torch.nan)
        image = draw(below, changes, "YlOrRd", LogNorm())
        below.invert_yaxis()
        below.set_yticks(range(stages), trace.stages)
        below.set_ylabel("stage")
        label = "relative difference of\nthe residual stream"
        figure.colorbar(image, ax=list(grid.flat), label=label)
    _label_both(below, clean, corrupted)
    return figure


def plot_patching(patching: Patching, clean: str, corrupted: str) -> Figure:
    """Plot the result of `activation_patching` for the same two texts, by kind of part."""
    kinds = {"attention": "attention", "feed_forward": "MLP"}
    groups: dict[str, list[int]] = {}
    for i, part in enumerate(patching.parts):
        kind = kinds.get(part.rpartition(".")[2], STREAM) if part.count(".") > 1 else STREAM
        groups.setdefault(kind, []).append(i)
    gap = torch.full((len(patching.parts), 1), torch.nan, device=patching.single.device)
    shares = torch.cat([patching.single, gap, patching.whole[:, None]], dim=1)
    heights = [CELL * len(rows) for rows in groups.values()]
    size = 3 + CELL * shares.size(1), 2 + sum(heights) + 0.4 * len(heights)
    figure, grid = new_grid(len(groups), 1, *size, sharex=True, height_ratios=heights)
    scale = CenteredNorm(halfrange=max(1, shares.nan_to_num().abs().max().item()))
    for axes, (kind, rows) in zip(grid[:, 0], groups.items(), strict=True):
        image = draw(axes, shares[rows], "PuOr_r", scale, blank="white")
        axes.invert_yaxis()
        axes.set_yticks(range(len(rows)), [patching.parts[i] for i in rows])
        axes.set_title(f"{kind}", loc="left")
    _label_both(axes, clean, corrupted, "all")
    figure.suptitle(
        f"Logit difference {patching.corrupted:+.2f} (corrupted) to {patching.clean:+.2f} (clean)"
    )
    figure.colorbar(image, ax=list(grid.flat), label="share restored by patching")
    return figure


def plot_attribution(
    attribution: Attribution, alphabet: str, answer: str, other: str | None = None,
    most: int = 24, axes: Axes | None = None,
) -> Axes:  # fmt: skip
    """Plot what each part adds to the logit of `answer`, or to its difference from that of `other`.

    Only the `most` parts that add or subtract most are shown, from the embedding upward.
    """
    values = attribution.logits[:, alphabet.index(answer)].cpu()
    title = f"Logit of {_quote(answer)}"
    if other is not None:
        values = values - attribution.logits[:, alphabet.index(other)].cpu()
        title += f" minus that of {_quote(other)}"
    shown = sorted(values.abs().argsort(descending=True)[:most].tolist())
    bars, names = values[shown].tolist(), [attribution.parts[i] for i in shown]
    if len(shown) < len(values):
        bars.append(values.sum().item() - sum(bars))
        names.append(f"{len(values) - len(shown)} other parts")
    axes = axes or new_axes(8, 1.4 + CELL * len(bars))
    colours = ["#b35806" if bar > 0 else "#542788" for bar in bars]
    container = axes.barh(range(len(bars)), bars, color=colours)
    axes.bar_label(container, [f"{bar:+.2f}" for bar in bars], padding=3)
    axes.set_yticks(range(len(bars)), names)
    axes.axvline(0, color="black", lw=0.8)
    axes.margins(x=0.15)
    axes.set_xlabel("added by each part")
    axes.set_title(f"{title}: {values.sum():+.2f} in total", family=["sans-serif", *FONTS[1:]])
    return axes


def _quote(character: str) -> str:
    # A combining mark needs a base character; otherwise it joins the quotation mark before it.
    return f"“{'◌' * bool(combining(character))}{visible(character)}”"


def _draw_tree(axes: Axes, merges: Sequence[Merge], order: Sequence[int]) -> None:
    """Draw a dendrogram; the leaf of id `order[x]` is at x."""
    places: dict[tuple[int, ...], tuple[float, float]]  # of each group: its middle, its height
    places = {(leaf,): (x, 1.0) for x, leaf in enumerate(order)}
    lines = []
    for left, right, height in merges:
        (x, bottom), (y, other) = places[tuple(left)], places[tuple(right)]
        lines.append([(x, bottom), (x, height), (y, height), (y, other)])
        places[tuple(left + right)] = ((x + y) / 2, height)
    axes.add_collection(LineCollection(lines, colors="black", linewidths=1))
    axes.set_ylim(1, min([0.0, *(merge.similarity for merge in merges)]) - 0.05)
    axes.tick_params(bottom=False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _label_both(axes: Axes, clean: str, corrupted: str, *more: str) -> None:
    """Label cells with the characters of the clean text and, below, what the other has instead."""
    pairs = zip(visible(clean), visible(corrupted), strict=True)
    labels = [old if old == new else f"{old}\n{new}" for old, new in pairs]
    places = [*range(len(labels)), *range(len(labels) + 1, len(labels) + 1 + len(more))]
    axes.set_xticks(places, [*labels, *more], family=FONTS, fontsize=11)
    axes.set_xlabel("character of the clean text (below: of the corrupted text)")


def _limit(alphabet: str, title: str) -> tuple[list[int], str, str]:
    """Return the ids and characters to draw, and a title that says if some are left out."""
    size = len(alphabet)
    if size <= MAX_CHARACTERS:
        return list(range(size)), alphabet, title
    shown = [i * size // MAX_CHARACTERS for i in range(MAX_CHARACTERS)]
    return shown, "".join(alphabet[i] for i in shown), f"{title}: {MAX_CHARACTERS} of {size:,}"
