"""Plots show the numbers they are given, with labels, for every network.

Shapes: T characters of a text, H heads.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
import torch
from laws import ALPHABET, CONFIGS, small, with_random_weights
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from lit_gpt_scratch import inspection
from lit_gpt_scratch.inspection import plots
from lit_gpt_scratch.models import Bigram

TEXT = "a \n\t$b"  # whitespace, and the sign that starts a formula in matplotlib
SHOWN = ["a", "␣", "⏎", "⇥", "$", "b"]


@pytest.fixture(autouse=True)
def draw_figures_and_close_them(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Render every figure without a window; a missing glyph raises an error."""
    monkeypatch.setitem(mpl.rcParams, "backend", "agg")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
    plt.close("all")


def random(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def image(axes: Axes) -> Tensor:
    """Return the numbers of a heat map; blank cells are NaN."""
    (found,) = axes.get_images()
    return torch.from_numpy(found.get_array().filled(torch.nan)).float()


def cells(axes: Axes) -> dict[tuple[int, int], str]:
    """Return the text in each cell (row, column)."""
    return {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in axes.texts}


def labels(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def colour_bars(figure: Figure) -> list[str]:
    """Return their labels."""
    return [axes.get_ylabel() for axes in figure.axes if axes.get_label() == "<colorbar>"]


def assert_equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.float(), equal_nan=True, atol=0, rtol=0)


def without_future(weights: Tensor) -> Tensor:
    """Replace the weights of future characters, which are blank and not zero, by NaN."""
    return weights.masked_fill(torch.ones_like(weights).triu(1).bool(), torch.nan)


def framed(axes: Axes) -> set[tuple[int, int]]:
    """Return the framed cells (row, column)."""
    return {(round(p.get_y() + 0.45), round(p.get_x() + 0.45)) for p in axes.patches}


def test_attention_has_a_cell_for_each_pair_and_visible_labels() -> None:
    weights = random(6, 6)
    axes = plots.plot_attention(weights, TEXT)
    assert_equal(image(axes), without_future(weights))
    assert axes.get_images()[0].get_clim() == (0, 1)
    assert labels(axes.xaxis) == labels(axes.yaxis) == SHOWN
    assert axes.get_xlabel() == "attended character (key)"
    assert axes.get_ylabel() == "attending character (query)"
    assert colour_bars(axes.figure) == ["attention weight"]


@pytest.mark.parametrize("length", [6, 40])
def test_heads_are_a_grid_of_layers_and_heads_on_one_scale(length: int) -> None:
    """Short texts are written along the axes; long ones are left out."""
    text = (TEXT * 7)[:length]
    layers = [
        inspection.LayerAttention(f"blocks.{i}.attention", random(heads, length, length))
        for i, heads in enumerate((3, 2))
    ]
    figure = plots.plot_heads(layers, text)
    assert colour_bars(figure) == ["attention weight"]
    shown = [axes for axes in figure.axes if axes.get_images()]
    drawn = [weights for layer in layers for weights in layer.weights]
    assert [axes.get_title() for axes in shown] == [f"head {i}" for i in (0, 1, 2, 0, 1)]
    assert [axes.get_ylabel() for axes in shown] == ["blocks.0", "", "", "blocks.1", ""]
    for axes, weights in zip(shown, drawn, strict=True):
        assert_equal(image(axes), without_future(weights))
        assert axes.get_images()[0].get_clim() == (0, 1)
        assert labels(axes.xaxis) == (SHOWN if length == 6 else [])


def test_next_characters_are_ranked_and_the_correct_ones_are_framed() -> None:
    alphabet = "\t\n $ab"
    probabilities = random(6, 6).softmax(-1)
    axes = plots.plot_next_characters(probabilities, TEXT, alphabet, top=3)
    ordered = probabilities.sort(descending=True)
    assert_equal(image(axes), ordered.values[:, :3].T)
    visible = dict(zip(TEXT, SHOWN, strict=True))
    for (rank, t), character in cells(axes).items():
        assert character == visible[alphabet[ordered.indices[t, rank]]]
    assert len(cells(axes)) == 18
    correct = {(rank, t) for rank in range(3) for t in range(5)
               if alphabet[ordered.indices[t, rank]] == TEXT[t + 1]}  # fmt: skip
    assert framed(axes) == correct
    assert correct
    assert labels(axes.xaxis) == SHOWN
    assert labels(axes.yaxis) == ["1", "2", "3"]
    assert colour_bars(axes.figure) == ["probability"]


def test_ranks_stop_at_the_size_of_the_alphabet() -> None:
    axes = plots.plot_next_characters(random(2, 3), "ab", "abc", top=5)
    assert image(axes).shape == (3, 2)


def test_logit_lens_shows_the_most_probable_character_with_the_first_stage_at_the_bottom() -> None:
    alphabet = "\t\n $ab"
    lens = inspection.Lens(["embed", "blocks.0"], random(2, 6, 6).softmax(-1))
    axes = plots.plot_logit_lens(lens, TEXT, alphabet)
    assert_equal(image(axes), lens.probabilities.amax(-1))
    visible = dict(zip(TEXT, SHOWN, strict=True))
    correct = set()
    for (stage, t), character in cells(axes).items():
        predicted = alphabet[lens.probabilities[stage, t].argmax()]
        assert character == visible[predicted]
        if TEXT[t + 1 : t + 2] == predicted:
            correct.add((stage, t))
    assert framed(axes) == correct
    assert len(cells(axes)) == 12
    assert labels(axes.yaxis) == ["embed", "blocks.0"]
    bottom, top = axes.get_ylim()
    assert bottom < top
    assert colour_bars(axes.figure) == ["probability"]


@pytest.mark.parametrize("columns", [2, 4, 64])
def test_token_losses_colour_a_text_line_by_line(columns: int) -> None:
    """A line ends at a newline or when it is full; the first character has no loss."""
    text, losses = "ab\n\ncdefg", torch.arange(1.0, 9.0)
    axes = plots.plot_token_losses(losses, text, columns)
    lines = {2: ["ab", "⏎", "⏎", "cd", "ef", "g"], 4: ["ab⏎", "⏎", "cdef", "g"]}
    written, drawn = cells(axes), image(axes)
    expected = lines.get(columns, ["ab⏎", "⏎", "cdefg"])
    assert written == {(r, c): x for r, line in enumerate(expected) for c, x in enumerate(line)}
    values = iter([torch.nan, *losses.tolist()])
    for row, line in enumerate(expected):
        cells_of_line = [next(values) for _ in line]
        blank = [torch.nan] * (drawn.size(1) - len(line))
        assert_equal(drawn[row], torch.tensor(cells_of_line + blank))
    assert axes.get_title() == "Loss of each character: 4.50 nats on average"
    assert colour_bars(axes.figure) == ["loss, nats"]
    assert axes.get_images()[0].get_clim() == (0, 8)


def test_position_costs_colour_a_text_on_a_scale_around_zero() -> None:
    """The last character has no cost, because nothing is predicted from it."""
    axes = plots.plot_position_costs(torch.tensor([0.5, -0.25, 2.0]), "abcd")
    assert_equal(image(axes), torch.tensor([[0.5, -0.25, 2.0, torch.nan]]))
    assert axes.get_images()[0].get_clim() == (-2, 2)
    assert colour_bars(axes.figure) == ["rise of the loss,\nnats per character"]


def test_costs_show_heads_and_layers_apart_on_the_scale_of_the_heads() -> None:
    heads, layers = torch.tensor([[0.1, -0.2], [0.3, 0.0]]), torch.tensor([0.5, 1.0])
    axes = plots.plot_costs(heads, layers)
    gap = torch.full((2, 1), torch.nan)
    assert_equal(image(axes), torch.cat([heads, gap, layers[:, None]], dim=1))
    most = heads.max().item()
    assert axes.get_images()[0].get_clim() == (-most, most)
    written = cells(axes)
    assert written[0, 1] == "-0.200"
    assert written[1, 3] == "+1.000"
    assert written[0, 2] == ""
    assert labels(axes.xaxis) == ["0", "1", "whole\nlayer"]
    assert labels(axes.yaxis) == ["0", "1"]
    assert colour_bars(axes.figure) == ["rise of the loss,\nnats per character"]


def test_text_in_a_cell_contrasts_with_the_cell() -> None:
    """Black on light and white on dark, with a contrast of at least 3 (WCAG 2.1, large text)."""

    def luminance(colour: Any) -> float:
        linear = [c / 12.92 if c <= 0.04 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    values = torch.linspace(0, 1, 64)
    for draw in (plots.plot_token_losses, plots.plot_position_costs):
        axes = draw(values * 2 - 1, "a" * 65, 65)
        ground = axes.get_images()[0]
        for text in axes.texts:
            column, row = text.get_position()
            under = ground.to_rgba(ground.get_array())[int(row), int(column)]
            pair = sorted([luminance(under[:3]), luminance(text.get_color())])
            assert (pair[1] + 0.05) / (pair[0] + 0.05) > 3


def test_embeddings_are_placed_by_their_principal_components() -> None:
    """The reference is the eigenvectors of the covariance, up to a sign."""
    alphabet = "\n 3AZaé中"
    rows = random(8, 5)
    axes = plots.plot_embeddings(rows, alphabet)
    variances, directions = torch.linalg.eigh(torch.cov(rows.T))
    places = (rows - rows.mean(0)) @ directions[:, [-1, -2]]
    found = torch.tensor([text.get_position() for text in axes.texts])
    torch.testing.assert_close(found.abs(), places.abs(), atol=1e-5, rtol=1e-4)
    assert [text.get_text() for text in axes.texts] == list("⏎␣3AZaé中")
    kinds = ["space, punctuation"] * 2 + ["digit"] + ["upper case"] * 2 + ["lower case"] * 2
    colours = [plots.KINDS[kind][1] for kind in [*kinds, "other letter"]]
    assert [text.get_color() for text in axes.texts] == colours
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == list(plots.KINDS)
    assert f"{variances[-1] / variances.sum():.0%} of the variance" in axes.get_xlabel()
    assert f"{variances[-2] / variances.sum():.0%}" in axes.get_ylabel()
    axes.texts[-1].set_visible(False)  # no font of matplotlib has this glyph


def test_similarity_leaves_out_the_diagonal_on_a_scale_around_zero() -> None:
    cosines = (random(6, 6) - 0.8).fill_diagonal_(1)
    axes = plots.plot_similarity(cosines, TEXT)
    others = cosines.masked_fill(torch.eye(6).bool(), torch.nan)
    assert_equal(image(axes), others)
    most = others.nan_to_num().abs().max().item()
    assert axes.get_images()[0].get_clim() == (-most, most)
    assert labels(axes.xaxis) == labels(axes.yaxis) == SHOWN
    assert colour_bars(axes.figure) == ["cosine similarity"]


@pytest.mark.parametrize("stages", [["embed", "blocks.0"], []])
def test_trace_shows_the_prediction_above_the_residual_stream_if_there_is_one(
    stages: list[str],
) -> None:
    """Cells that did not change at all are grey."""
    change, divergence = random(len(stages), 6), random(6)
    change[:, :2], divergence[:2] = 0, 0
    figure = plots.plot_trace(inspection.Trace(stages, change, divergence), TEXT, 2, "b")
    above = figure.axes[0]
    assert [bar.get_height() for bar in above.patches] == divergence.tolist()
    assert above.get_title() == "Effect of replacing “⏎” at position 2 by “b”"
    below = figure.axes[1] if stages else above
    assert labels(below.xaxis) == SHOWN
    assert above.get_ylabel() == "prediction,\nKL in nats"
    if stages:
        assert_equal(image(below), change.where(change > 0, torch.nan))
        assert labels(below.yaxis) == stages
        assert colour_bars(figure) == ["relative change of\nthe residual stream"]


def test_plots_draw_into_given_axes() -> None:
    figure, axes = plt.subplots()
    assert plots.plot_attention(random(2, 2), "ab", axes) is axes
    assert plots.plot_next_characters(random(2, 3), "ab", "abc", axes=axes) is axes
    assert plots.plot_token_losses(random(1), "ab", axes=axes) is axes
    assert plots.plot_position_costs(random(1), "ab", axes=axes) is axes
    assert plots.plot_logit_lens(inspection.Lens(["embed"], random(1, 2, 3)), "ab", "abc", axes)
    assert plots.plot_costs(random(1, 2), random(1), axes) is axes
    assert plots.plot_embeddings(random(3, 2), "abc", axes) is axes
    assert plots.plot_similarity(random(3, 3), "abc", axes) is axes
    assert plt.get_fignums() == [figure.number]


NETWORKS = {type(small(config).net): config for config in CONFIGS}


@pytest.mark.parametrize("config", NETWORKS.values(), ids=lambda path: path.stem)
def test_results_can_be_plotted_for_every_class_of_network(config: Path) -> None:
    model = small(config)
    model.net = with_random_weights(model.net)
    text = "GoodLuck"
    plots.plot_token_losses(inspection.token_losses(model, text * 3), text * 3)
    plots.plot_next_characters(inspection.next_characters(model, text), text, ALPHABET)
    plots.plot_trace(inspection.trace(model, text, 3, "Z"), text, 3, "Z")
    if not isinstance(model.net, Bigram):
        plots.plot_heads(inspection.attention(model, text), text)
    if hasattr(model.net, "members"):
        model = inspection.member(model, 0)
    plots.plot_embeddings(inspection.embeddings(model), ALPHABET)
    plots.plot_similarity(inspection.similarity(model), ALPHABET)
    plots.plot_position_costs(inspection.position_costs(model, text), text)
    if not isinstance(model.net, Bigram):
        plots.plot_logit_lens(inspection.logit_lens(model, text), text, ALPHABET)
        plots.plot_costs(inspection.head_costs(model, text), inspection.layer_costs(model, text))
    plt.close("all")  # rendering them would take half a minute
