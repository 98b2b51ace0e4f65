"""Pictures show the numbers they are given, say what they are, and fit every rung."""

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
from lit_gpt_scratch.models.gpt import Bigram

TEXT = "a \n\t$b"  # what is invisible, and what starts a formula
SHOWN = ["a", "␣", "⏎", "⇥", "$", "b"]


@pytest.fixture(autouse=True)
def paper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Figures nobody sees, drawn to the end, where a missing glyph would be a warning."""
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
    """The numbers in a heat map; grey cells are NaN."""
    (found,) = axes.get_images()
    return torch.from_numpy(found.get_array().filled(torch.nan)).float()


def cells(axes: Axes) -> dict[tuple[int, int], str]:
    """What is written where: (row, column)."""
    return {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in axes.texts}


def labels(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def colour_bars(figure: Figure) -> list[str]:
    """What they are labelled with."""
    return [axes.get_ylabel() for axes in figure.axes if axes.get_label() == "<colorbar>"]


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.float(), equal_nan=True, atol=0, rtol=0)


def with_future(weights: Tensor) -> Tensor:
    """What is never read is not zero: it is not there."""
    return weights.masked_fill(torch.ones_like(weights).triu(1).bool(), torch.nan)


def framed(axes: Axes) -> set[tuple[int, int]]:
    return {(round(p.get_y() + 0.45), round(p.get_x() + 0.45)) for p in axes.patches}


def test_attention_has_a_cell_for_each_pair_and_shows_what_is_invisible() -> None:
    weights = random(6, 6)
    axes = plots.plot_attention(weights, TEXT)
    same(image(axes), with_future(weights))
    assert axes.get_images()[0].get_clim() == (0, 1)
    assert labels(axes.xaxis) == labels(axes.yaxis) == SHOWN
    assert axes.get_xlabel() == "character read from"
    assert axes.get_ylabel() == "character that reads"
    assert colour_bars(axes.figure) == ["attention weight"]


@pytest.mark.parametrize("length", [6, 40])
def test_heads_are_a_grid_of_layers_and_heads_on_one_scale(length: int) -> None:
    """Characters stand beside them where there is room."""
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
        same(image(axes), with_future(weights))
        assert axes.get_images()[0].get_clim() == (0, 1)
        assert labels(axes.xaxis) == (SHOWN if length == 6 else [])


def test_next_characters_are_ranked_and_what_came_is_framed() -> None:
    alphabet = "\t\n $ab"
    probabilities = random(6, 6).softmax(-1)
    axes = plots.plot_next_characters(probabilities, TEXT, alphabet, top=3)
    ordered = probabilities.sort(descending=True)
    same(image(axes), ordered.values[:, :3].T)
    visible = dict(zip(TEXT, SHOWN, strict=True))
    for (rank, t), character in cells(axes).items():
        assert character == visible[alphabet[ordered.indices[t, rank]]]
    assert len(cells(axes)) == 18
    came = {(rank, t) for rank in range(3) for t in range(5)
            if alphabet[ordered.indices[t, rank]] == TEXT[t + 1]}  # fmt: skip
    assert framed(axes) == came
    assert came
    assert labels(axes.xaxis) == SHOWN
    assert labels(axes.yaxis) == ["1", "2", "3"]
    assert colour_bars(axes.figure) == ["probability"]


def test_no_more_characters_are_ranked_than_there_are() -> None:
    axes = plots.plot_next_characters(random(2, 3), "ab", "abc", top=5)
    assert image(axes).shape == (3, 2)


def test_the_logit_lens_shows_the_likeliest_at_each_stage_the_first_at_the_bottom() -> None:
    alphabet = "\t\n $ab"
    lens = inspection.Lens(["embed", "blocks.0"], random(2, 6, 6).softmax(-1))
    axes = plots.plot_logit_lens(lens, TEXT, alphabet)
    same(image(axes), lens.probabilities.amax(-1))
    visible = dict(zip(TEXT, SHOWN, strict=True))
    came = set()
    for (stage, t), character in cells(axes).items():
        guess = alphabet[lens.probabilities[stage, t].argmax()]
        assert character == visible[guess]
        if TEXT[t + 1 : t + 2] == guess:
            came.add((stage, t))
    assert framed(axes) == came
    assert len(cells(axes)) == 12
    assert labels(axes.yaxis) == ["embed", "blocks.0"]
    bottom, top = axes.get_ylim()
    assert bottom < top
    assert colour_bars(axes.figure) == ["probability"]


@pytest.mark.parametrize("columns", [2, 4, 64])
def test_a_text_is_drawn_line_by_line_over_its_surprise(columns: int) -> None:
    """A line ends with a new line or where it is full; the first character surprises nobody."""
    text, nats = "ab\n\ncdefg", torch.arange(1.0, 9.0)
    axes = plots.plot_surprise(nats, text, columns)
    lines = {2: ["ab", "⏎", "⏎", "cd", "ef", "g"], 4: ["ab⏎", "⏎", "cdef", "g"]}
    written, drawn = cells(axes), image(axes)
    expected = lines.get(columns, ["ab⏎", "⏎", "cdefg"])
    assert written == {(r, c): x for r, line in enumerate(expected) for c, x in enumerate(line)}
    values = iter([torch.nan, *nats.tolist()])
    for row, line in enumerate(expected):
        cells_of_line = [next(values) for _ in line]
        blank = [torch.nan] * (drawn.size(1) - len(line))
        same(drawn[row], torch.tensor(cells_of_line + blank))
    assert axes.get_title() == "Surprise: 4.50 nats per character on average"
    assert colour_bars(axes.figure) == ["surprise, nats"]
    assert axes.get_images()[0].get_clim() == (0, 8)


def test_positions_are_coloured_by_what_they_cost_around_zero() -> None:
    """All but the last character, of which nothing is expected."""
    axes = plots.plot_position_costs(torch.tensor([0.5, -0.25, 2.0]), "abcd")
    same(image(axes), torch.tensor([[0.5, -0.25, 2.0, torch.nan]]))
    assert axes.get_images()[0].get_clim() == (-2, 2)
    assert colour_bars(axes.figure) == ["loss, nats per character"]


def test_costs_of_heads_and_layers_stand_apart_on_the_scale_of_the_heads() -> None:
    heads, layers = torch.tensor([[0.1, -0.2], [0.3, 0.0]]), torch.tensor([0.5, 1.0])
    axes = plots.plot_costs(heads, layers)
    gap = torch.full((2, 1), torch.nan)
    same(image(axes), torch.cat([heads, gap, layers[:, None]], dim=1))
    most = heads.max().item()
    assert axes.get_images()[0].get_clim() == (-most, most)
    written = cells(axes)
    assert written[0, 1] == "-0.200"
    assert written[1, 3] == "+1.000"
    assert written[0, 2] == ""
    assert labels(axes.xaxis) == ["0", "1", "whole\nlayer"]
    assert labels(axes.yaxis) == ["0", "1"]
    assert colour_bars(axes.figure) == ["loss, nats per character"]


def test_what_is_written_in_a_cell_can_be_read_there() -> None:
    """Black on light and white on dark, with a contrast of at least 3 (WCAG 2.1, large text)."""

    def luminance(colour: Any) -> float:
        linear = [c / 12.92 if c <= 0.04 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    values = torch.linspace(0, 1, 64)
    for draw in (plots.plot_surprise, plots.plot_position_costs):
        axes = draw(values * 2 - 1, "a" * 65, 65)
        ground = axes.get_images()[0]
        for text in axes.texts:
            column, row = text.get_position()
            under = ground.to_rgba(ground.get_array())[int(row), int(column)]
            pair = sorted([luminance(under[:3]), luminance(text.get_color())])
            assert (pair[1] + 0.05) / (pair[0] + 0.05) > 3


def test_embeddings_lie_where_their_principal_components_are() -> None:
    """Against the eigenvectors of the covariance, up to a sign; each drawn as its character."""
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
    axes.texts[-1].set_visible(False)  # no font of matplotlib's has it


def test_similarity_is_of_a_character_with_the_others_around_zero() -> None:
    cosines = (random(6, 6) - 0.8).fill_diagonal_(1)
    axes = plots.plot_similarity(cosines, TEXT)
    others = cosines.masked_fill(torch.eye(6).bool(), torch.nan)
    same(image(axes), others)
    most = others.nan_to_num().abs().max().item()
    assert axes.get_images()[0].get_clim() == (-most, most)
    assert labels(axes.xaxis) == labels(axes.yaxis) == SHOWN
    assert colour_bars(axes.figure) == ["cosine"]


@pytest.mark.parametrize("stages", [["embed", "blocks.0"], []])
def test_a_trace_shows_the_prediction_over_the_stream_where_there_is_one(stages: list[str]) -> None:
    """What has not changed at all is grey."""
    change, divergence = random(len(stages), 6), random(6)
    change[:, :2], divergence[:2] = 0, 0
    figure = plots.plot_trace(inspection.Trace(stages, change, divergence), TEXT, 2, "b")
    above = figure.axes[0]
    assert [bar.get_height() for bar in above.patches] == divergence.tolist()
    assert above.get_title() == "What changes when “⏎” at position 2 becomes “b”"
    below = figure.axes[1] if stages else above
    assert labels(below.xaxis) == SHOWN
    assert above.get_ylabel() == "prediction,\nKL in nats"
    if stages:
        same(image(below), change.where(change > 0, torch.nan))
        assert labels(below.yaxis) == stages
        assert colour_bars(figure) == ["change of the stream, relative"]


def test_axes_that_are_given_are_drawn_into() -> None:
    figure, axes = plt.subplots()
    assert plots.plot_attention(random(2, 2), "ab", axes) is axes
    assert plots.plot_next_characters(random(2, 3), "ab", "abc", axes=axes) is axes
    assert plots.plot_surprise(random(1), "ab", axes=axes) is axes
    assert plots.plot_position_costs(random(1), "ab", axes=axes) is axes
    assert plots.plot_logit_lens(inspection.Lens(["embed"], random(1, 2, 3)), "ab", "abc", axes)
    assert plots.plot_costs(random(1, 2), random(1), axes) is axes
    assert plots.plot_embeddings(random(3, 2), "abc", axes) is axes
    assert plots.plot_similarity(random(3, 3), "abc", axes) is axes
    assert plt.get_fignums() == [figure.number]


NETWORKS = {type(small(config).net): config for config in CONFIGS}


@pytest.mark.parametrize("config", NETWORKS.values(), ids=lambda path: path.stem)
def test_what_explore_finds_can_be_drawn_for_every_class_of_network(config: Path) -> None:
    model = small(config)
    model.net = with_random_weights(model.net)
    text = "GoodLuck"
    plots.plot_surprise(inspection.surprise(model, text * 3), text * 3)
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
    plt.close("all")  # made, and not drawn: that would take half a minute
