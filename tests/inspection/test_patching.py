"""`trace` and `activation_patching`, checked against runs of networks put together by hand.

Shapes: T characters of a text, C channels.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from laws import ALPHABET
from reference_networks import (
    TEXT,
    every_config,
    every_single,
    logits,
    model_named,
    random_model,
    residual,
    single_network,
)
from torch import Tensor, nn

from lit_gpt_scratch import inspection
from lit_gpt_scratch.models import Bigram

CORRUPTED = "GoodBuck"
CHANGED = 4  # the position where the texts differ


class Fixed(nn.Module):
    """Returns the same output (T, C) for every input."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_: Any) -> Tensor:
        return self.output[None]


def with_output(net: nn.Module, name: str, output: Tensor) -> nn.Module:
    """Return a copy of a network in which a module returns a fixed output (T, C)."""
    net = copy.deepcopy(net)
    if name == "table":
        net.table = nn.Embedding.from_pretrained(output)  # row t is the output at position t
    else:
        net.set_submodule(name, Fixed(output))
    return net


def outputs(net: nn.Module, ids: Tensor, names: list[str]) -> dict[str, Tensor]:
    """Return the output (T, C) of each module."""
    found = {}
    copied = copy.deepcopy(net)
    for name in names:
        copied.get_submodule(name).register_forward_hook(
            lambda _, __, y, name=name: found.update({name: y[0]})
        )
    copied(ids[None])
    return found


@every_single
@torch.no_grad()
def test_patching_equals_a_network_whose_part_returns_the_patched_output(config: Path) -> None:
    model = single_network(config)
    net, position = model.net, CHANGED if isinstance(model.net, Bigram) else 6
    found = inspection.activation_patching(model, TEXT, CORRUPTED, "a", "b", position)
    clean, corrupted = (model.tokenizer.encode(text) for text in (TEXT, CORRUPTED))
    a, b = ALPHABET.index("a"), ALPHABET.index("b")

    def difference(net: nn.Module, ids: Tensor) -> float:
        scores = logits(net, ids)[position]
        return (scores[a] - scores[b]).item()

    start, end = difference(net, corrupted), difference(net, clean)
    assert (found.corrupted, found.clean) == pytest.approx((start, end), abs=1e-5)
    before, after = outputs(net, corrupted, found.parts), outputs(net, clean, found.parts)
    # A bigram's table is replaced by one with a row for each position.
    ids = torch.arange(len(TEXT)) if isinstance(net, Bigram) else corrupted
    for name, row, whole in zip(found.parts, found.single, found.whole, strict=True):
        for t, share in enumerate(row):
            patched = before[name].clone()
            patched[t] = after[name][t]
            moved = difference(with_output(net, name, patched), ids) - start
            assert share.item() * (end - start) == pytest.approx(moved, abs=1e-5)
        moved = difference(with_output(net, name, after[name]), ids) - start
        assert whole.item() * (end - start) == pytest.approx(moved, abs=1e-5)


@every_single
@torch.no_grad()
def test_patching_restores_all_where_all_that_differs_passes_and_nothing_elsewhere(
    config: Path,
) -> None:
    model = single_network(config)
    position = CHANGED if isinstance(model.net, Bigram) else 6
    found = inspection.activation_patching(model, TEXT, CORRUPTED, "a", "b", position)
    stages = [i for i, part in enumerate(found.parts) if part.count(".") < 2]
    one = torch.ones(len(stages))
    torch.testing.assert_close(found.whole[stages], one, atol=1e-4, rtol=0)
    # Where the embeddings differ, and where the last layer is read.
    ends = torch.stack([found.single[0, CHANGED], found.single[stages[-1], position]])
    torch.testing.assert_close(ends, torch.ones(2), atol=1e-4, rtol=0)
    nothing = [found.single[:, :CHANGED], found.single[:, position + 1 :]]
    assert torch.cat(nothing, dim=1).abs().max() < 1e-4
    assert found.single[stages[-1], :position].abs().sum() < 1e-4


def test_the_position_is_the_last_one_unless_given() -> None:
    model = model_named("transformer")
    given, default = (
        inspection.activation_patching(model, TEXT, CORRUPTED, "a", "b", position)
        for position in (7, None)
    )
    assert torch.equal(given.single, default.single)


@every_config
@torch.no_grad()
@pytest.mark.parametrize("position", [0, 3, 7])
def test_trace_measures_the_difference_of_the_residual_stream_and_of_the_prediction(
    config: Path, position: int
) -> None:
    """Positions before the replaced one keep every bit; the replaced one changes."""
    model = random_model(config)
    texts = (TEXT, TEXT[:position] + "Z" + TEXT[position + 1 :])
    found = inspection.trace(model, *texts)
    before, after = (model.tokenizer.encode(text) for text in texts)
    p, q = (logits(model.net, ids).double().softmax(-1) for ids in (before, after))
    for t, divergence in enumerate(found.prediction):
        expected = sum(a * (a.log() - b.log()) for a, b in zip(p[t], q[t], strict=True))
        torch.testing.assert_close(divergence.double(), expected, atol=1e-5, rtol=1e-4)
    assert not found.prediction[:position].any()
    assert found.prediction[position] > 1e-3
    assert found.residual.shape == (len(found.stages), len(TEXT))
    if not hasattr(model.net, "unembed"):
        assert not found.stages
        return
    assert found.stages == inspection.logit_lens(model, TEXT).stages
    pairs = zip(residual(model.net, before), residual(model.net, after), strict=True)
    for row, (x, y) in zip(found.residual, pairs, strict=True):
        relative = [(y[t] - x[t]).norm() / x[t].norm() for t in range(len(TEXT))]
        torch.testing.assert_close(row, torch.stack(relative), atol=1e-5, rtol=1e-4)
    assert not found.residual[:, :position].any()
