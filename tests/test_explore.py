"""Looking inside a model: what is seen is what is there, and looking changes nothing.

Shapes: B batch, T time, H heads.
"""

import copy
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from laws import CONFIGS, past_weights, random_ids, small, stirred
from torch import Tensor, nn

from lit_gpt_scratch import explore
from lit_gpt_scratch.attention import MeanAttention, MultiHeadAttention, SingleHeadAttention
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models import GPT, AttentionLM
from lit_gpt_scratch.module import LitCharLM

TEXT = "GoodLuck"


def with_attention(config: Path) -> bool:
    return any(hasattr(module, "weights") for module in small(config).net.modules())


RUNGS = [config for config in CONFIGS if with_attention(config)]


@pytest.fixture(params=RUNGS, ids=lambda path: path.stem)
def model(request: pytest.FixtureRequest) -> LitCharLM:
    """Every rung that has attention, with weights far from their start."""
    model = small(request.param).eval()
    model.net = stirred(model.net)
    return model


@pytest.fixture
def bigram() -> LitCharLM:
    return small(next(config for config in CONFIGS if config.stem == "bigram"))


def direct(attention: nn.Module, x: Tensor) -> Tensor:
    """Weights (H, T, T) of x (T, C), from the parameters, head by head and reader by reader."""
    if isinstance(attention, MultiHeadAttention):
        query, key, _ = (x @ matrix.T for matrix in attention.qkv.weight.chunk(3))
        size = query.size(-1) // attention.heads
        pairs = zip(query.split(size, dim=-1), key.split(size, dim=-1), strict=True)
        return torch.stack([past_weights(q, k) for q, k in pairs])
    if isinstance(attention, SingleHeadAttention):
        return past_weights(x @ attention.query.weight.T, x @ attention.key.weight.T)[None]
    if isinstance(attention, MeanAttention):
        return past_weights(0 * x, 0 * x)[None]
    return attention.weights(x[None])[0]  # of a new class, its own word; its layer, by hand


def layer_inputs(net: nn.Module, ids: Tensor) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Each attention's name and input (T, C), by going through the network by hand."""
    if not isinstance(net, GPT | AttentionLM):
        pytest.skip(f"how the layers of a {type(net).__name__} follow each other is its own matter")
    x = net.embed(ids[None])
    if isinstance(net, AttentionLM):
        yield "attention", net.attention, x[0]
        return
    for i, block in enumerate(net.blocks):
        yield f"blocks.{i}.attention", block.attention, block.attention_norm(x)[0]
        x = block(x)


def hooks(net: nn.Module) -> int:
    return sum(
        len(vars(module)[kind]) for module in net.modules() for kind in vars(module)
        if kind.endswith("_hooks")
    )  # fmt: skip


@torch.no_grad()
def test_what_is_shown_is_what_each_head_reads(model: LitCharLM) -> None:
    """Of every layer in turn, under its name, computed here from the parameters alone."""
    found = explore.attention(model, TEXT)
    expected = list(layer_inputs(model.net, model.tokenizer.encode(TEXT)))
    assert [layer.layer for layer in found] == [name for name, _, _ in expected]
    for layer, (_, attention, x) in zip(found, expected, strict=True):
        torch.testing.assert_close(layer.weights, direct(attention, x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("length", [1, 5, 8])
def test_a_text_of_any_length_up_to_the_context_can_be_looked_at(
    model: LitCharLM, length: int
) -> None:
    for layer in explore.attention(model, TEXT[:length]):
        assert layer.weights.shape[1:] == (length, length)


@torch.no_grad()
def test_looking_changes_nothing(model: LitCharLM) -> None:
    """Outputs, parameters, mode, hooks: all as before."""
    ids = random_ids(len(model.tokenizer), 2, model.context)
    before, weights = model(ids), copy.deepcopy(model.net.state_dict())
    assert hooks(model.net) == 0
    explore.attention(model, TEXT)
    assert hooks(model.net) == 0
    assert not model.net.training
    assert torch.equal(model(ids), before)
    assert all(torch.equal(w, weights[name]) for name, w in model.net.state_dict().items())


def test_hooks_are_taken_off_when_the_network_fails(model: LitCharLM) -> None:
    """And those that somebody else put on stay."""

    def fail(*_: object) -> None:
        raise RuntimeError("on purpose")

    *_, last = model.net.modules()
    own = last.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        explore.attention(model, TEXT)
    assert hooks(model.net) == 1
    own.remove()
    assert hooks(model.net) == 0


def test_a_network_without_attention_says_so(bigram: LitCharLM) -> None:
    with pytest.raises(InputError, match="Bigram has no attention"):
        explore.attention(bigram, TEXT)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text has 0 characters: it must have from 1 to 8"),
        (TEXT + "y", "the text has 9 characters: it must have from 1 to 8"),
        ("no way", "' ' at position 2"),
    ],
)
def test_a_text_that_does_not_fit_is_refused(model: LitCharLM, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        explore.attention(model, text)
    assert hooks(model.net) == 0


def test_a_picture_has_a_cell_for_each_pair_and_shows_what_is_invisible(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(mpl.rcParams, "backend", "agg")
    weights = torch.rand(4, 4).tril()
    axes = explore.plot_attention(weights, "a \n\t")
    (image,) = axes.get_images()
    assert image.get_array().tolist() == weights.tolist()
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["a", "␣", "⏎", "⇥"]
    from matplotlib import pyplot as plt

    plt.close(axes.figure)
