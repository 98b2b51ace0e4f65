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


@pytest.mark.parametrize(
    ("factors", "limits", "colours"),
    [((1, 0.5), (0, 1), "Blues"), ((3, 1), (0, 3), "Blues"), ((-2, 1), (-2, 2), "RdBu")],
)
def test_the_colour_bar_is_that_of_every_head(
    factors: tuple[float, ...], limits: tuple[float, float], colours: str
) -> None:
    """Also if the weights are no probabilities: large ones, or negative ones in one layer."""
    eye = torch.eye(4)[None]
    layers = [
        inspection.LayerAttention(f"blocks.{i}.attention", factor * eye)
        for i, factor in enumerate(factors)
    ]
    figure = plots.plot_heads(layers, "abcd")
    images = [axes.get_images()[0] for axes in figure.axes if axes.get_images()]
    assert len(images) == 2
    for found in images:
        assert found.get_clim() == limits
        assert found.get_cmap().name == colours
    assert plots.plot_attention(factors[0] * eye[0], "abcd").get_images()[0].get_clim() == limits


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
    assert axes.get_images()[0].get_clim() == (0, 8), "the scale ends at the largest loss"


def test_position_costs_colour_a_text_on_a_scale_around_zero() -> None:
    """The last character has no cost, because nothing is predicted from it."""
    axes = plots.plot_position_costs(torch.tensor([0.5, -0.25, 2.0]), "abcd")
    assert_equal(image(axes), torch.tensor([[0.5, -0.25, 2.0, torch.nan]]))
    assert axes.get_images()[0].get_clim() == (-2, 2)
    assert colour_bars(axes.figure) == ["rise of the loss,\nnats per character"]


def test_costs_show_heads_and_layers_apart_on_one_scale() -> None:
    """It ends at the largest value, and follows the square root."""
    heads, layers = torch.tensor([[0.1, -0.2], [0.3, 0.0]]), torch.tensor([0.5, 1.0])
    axes = plots.plot_costs(heads, layers)
    gap = torch.full((2, 1), torch.nan)
    assert_equal(image(axes), torch.cat([heads, gap, layers[:, None]], dim=1))
    ground = axes.get_images()[0]
    assert ground.get_clim() == (-1, 1)
    assert ground.norm([-0.25, 0.0, 0.25, 1.0]).tolist() == [0.25, 0.5, 0.75, 1.0]
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


def test_similarity_is_in_the_order_of_the_clusters_below_their_tree() -> None:
    """The diagonal is grey; labels have the colour of the character's kind."""
    alphabet = "\n 3AZaé中"
    cosines = inspection.similarity(random(8, 5))
    figure = plots.plot_similarity(cosines, alphabet, "Embeddings")
    tree, below = figure.axes[:2]
    merges = inspection.clusters(cosines)
    order = merges[-1].left + merges[-1].right
    assert_equal(image(below), cosines[order][:, order].fill_diagonal_(torch.nan))
    most = cosines.clone().fill_diagonal_(0).abs().max().item()
    assert below.get_images()[0].get_clim() == pytest.approx((-most, most))
    assert labels(below.xaxis) == labels(below.yaxis) == ["⏎␣3AZaé中"[i] for i in order]
    kinds = ["space, punctuation"] * 2 + ["digit"] + ["upper case"] * 2 + ["lower case"] * 2
    kinds.append("other letter")
    colours = [plots.KINDS[kinds[i]][1] for i in order]
    for axis in (below.xaxis, below.yaxis):
        assert [label.get_color() for label in axis.get_ticklabels()] == colours
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(plots.KINDS)
    assert colour_bars(figure) == ["cosine similarity"]
    assert tree.get_title() == "Embeddings"
    for axis in (below.xaxis, below.yaxis):  # no font of matplotlib has this glyph
        axis.get_ticklabels()[order.index(7)].set_visible(False)


def test_the_tree_joins_each_pair_of_groups_at_their_similarity_without_crossings() -> None:
    """A group's line ends in the middle between those of its two parts."""
    cosines = inspection.similarity(random(7, 4))
    (tree,) = plots.plot_similarity(cosines, ALPHABET[:7]).axes[0].collections
    merges = inspection.clusters(cosines)
    order = merges[-1].left + merges[-1].right
    middles = {frozenset([leaf]): (float(x), 1.0) for x, leaf in enumerate(order)}
    for (left, right, height), line in zip(merges, tree.get_segments(), strict=True):
        (x, bottom), (y, other) = middles[frozenset(left)], middles[frozenset(right)]
        expected = [[x, bottom], [x, height], [y, height], [y, other]]
        torch.testing.assert_close(torch.tensor(line.tolist()), torch.tensor(expected))
        members = sorted(order.index(leaf) for leaf in left + right)
        assert members == [*range(members[0], members[-1] + 1)], "lines cross"
        middles[frozenset(left + right)] = ((x + y) / 2, height)


@pytest.mark.parametrize("stages", [["embed", "blocks.0"], []])
def test_trace_shows_the_prediction_above_the_residual_stream_if_there_is_one(
    stages: list[str],
) -> None:
    """Cells that do not differ at all are grey."""
    change, divergence = random(len(stages), 6), random(6)
    change[:, :2], divergence[:2] = 0, 0
    figure = plots.plot_trace(inspection.Trace(stages, change, divergence), TEXT, "a b\t$b")
    above = figure.axes[0]
    assert [bar.get_height() for bar in above.patches] == divergence.tolist()
    below = figure.axes[1] if stages else above
    assert labels(below.xaxis) == ["a", "␣", "⏎\nb", "⇥", "$", "b"]
    assert above.get_ylabel() == "prediction,\nKL in nats"
    if stages:
        assert_equal(image(below), change.where(change > 0, torch.nan))
        assert labels(below.yaxis) == stages
        assert colour_bars(figure) == ["relative difference of\nthe residual stream"]


def test_patching_has_a_map_for_each_kind_of_part_on_one_scale() -> None:
    parts = ["embed", "blocks.0.attention", "blocks.0.feed_forward", "blocks.0"]
    single, whole = random(4, 6) * 3 - 1, random(4)
    patching = inspection.Patching(parts, single, whole, 4.68, -4.84)
    figure = plots.plot_patching(patching, TEXT, "a b\t$b")
    shown = [axes for axes in figure.axes if axes.get_images()]
    groups = [("residual stream", [0, 3]), ("attention", [1]), ("MLP", [2])]
    most = single.abs().max().item()
    for axes, (kind, rows) in zip(shown, groups, strict=True):
        assert axes.get_title(loc="left") == kind
        assert_equal(image(axes)[:, :6], single[rows])
        assert image(axes)[:, 6].isnan().all()
        assert_equal(image(axes)[:, 7], whole[rows])
        assert axes.get_images()[0].get_clim() == pytest.approx((-most, most))
        assert labels(axes.yaxis) == [parts[row] for row in rows]
        bottom, top = axes.get_ylim()
        assert bottom < top, "the first layer is at the bottom"
    assert labels(shown[-1].xaxis) == ["a", "␣", "⏎\nb", "⇥", "$", "b", "all"]
    assert "-4.84 (corrupted) to +4.68 (clean)" in figure.get_suptitle()
    assert colour_bars(figure) == ["share restored by patching"]


def test_patching_an_attention_that_is_the_only_layer_is_the_residual_stream() -> None:
    patching = inspection.Patching(["embed", "attention"], random(2, 6), random(2), 1.0, 0.0)
    shown = [axes for axes in plots.plot_patching(patching, TEXT, TEXT).axes if axes.get_images()]
    assert [axes.get_title(loc="left") for axes in shown] == ["residual stream"]


@pytest.mark.parametrize("other", ["c", None])
def test_attribution_has_a_bar_for_each_large_part_and_one_for_the_rest(other: str | None) -> None:
    values = torch.tensor([[0.0, 3.0, 1.0], [9.0, -0.5, 0.25], [0.0, 0.1, 0.0], [1.0, -4.0, 1.0]])
    parts = ["embed", "blocks.0.attention, head 0", "blocks.0.feed_forward", "bias"]
    attribution = inspection.Attribution(parts, values)
    axes = plots.plot_attribution(attribution, "abc", "b", other, most=2)
    expected = [2.0, -5.0, -0.65] if other else [3.0, -4.0, -0.4]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(expected)
    assert labels(axes.yaxis) == ["embed", "bias", "2 other parts"]
    assert [text.get_text() for text in axes.texts] == [f"{value:+.2f}" for value in expected]
    title = (
        "Logit of “b” minus that of “c”: -3.65 in total"
        if other
        else "Logit of “b”: -1.40 in total"
    )
    assert axes.get_title() == title
    axes = plots.plot_attribution(attribution, "abc", "b", other)
    assert labels(axes.yaxis) == parts


def test_plots_draw_into_given_axes() -> None:
    figure, axes = plt.subplots()
    assert plots.plot_attention(random(2, 2), "ab", axes) is axes
    assert plots.plot_next_characters(random(2, 3), "ab", "abc", axes=axes) is axes
    assert plots.plot_token_losses(random(1), "ab", axes=axes) is axes
    assert plots.plot_position_costs(random(1), "ab", axes=axes) is axes
    assert plots.plot_logit_lens(inspection.Lens(["embed"], random(1, 2, 3)), "ab", "abc", axes)
    assert plots.plot_costs(random(1, 2), random(1), axes) is axes
    attribution = inspection.Attribution(["embed"], random(1, 3))
    assert plots.plot_attribution(attribution, "abc", "a", axes=axes) is axes
    assert plt.get_fignums() == [figure.number]


NETWORKS = {type(small(config).net): config for config in CONFIGS}


@pytest.mark.parametrize("config", NETWORKS.values(), ids=lambda path: path.stem)
def test_results_can_be_plotted_for_every_class_of_network(config: Path) -> None:
    model = small(config)
    model.net = with_random_weights(model.net)
    text = "GoodLuck"
    plots.plot_token_losses(inspection.token_losses(model, text * 3), text * 3)
    plots.plot_next_characters(inspection.next_characters(model, text), text, ALPHABET)
    texts = text, "GoodLucy"
    plots.plot_trace(inspection.trace(model, *texts), *texts)
    if not isinstance(model.net, Bigram):
        plots.plot_heads(inspection.attention(model, text), text)
    if hasattr(model.net, "members"):
        model = inspection.member(model, 0)
    for rows in (inspection.embeddings(model), inspection.unembeddings(model)):
        plots.plot_similarity(inspection.similarity(rows), ALPHABET)
    plots.plot_patching(inspection.activation_patching(model, *texts, "a", "b"), *texts)
    plots.plot_attribution(inspection.logit_attribution(model, text), ALPHABET, "a", "b")
    plots.plot_position_costs(inspection.position_costs(model, text), text)
    if not isinstance(model.net, Bigram):
        plots.plot_logit_lens(inspection.logit_lens(model, text), text, ALPHABET)
        plots.plot_costs(inspection.head_costs(model, text), inspection.layer_costs(model, text))
    plt.close("all")  # rendering them would take half a minute
