"""`hooks` returns what the network computes, checked against `reference_networks`.

Shapes: T characters of a text, C channels, H heads, V alphabet size.
"""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from laws import ALPHABET, CONFIGS
from reference_networks import (
    LONG,
    TEXT,
    attention_of,
    attention_weights,
    every_config,
    every_ensemble,
    every_residual,
    layers_of,
    logits,
    losses,
    model_named,
    random_model,
    residual,
    single_network,
    unembed,
)
from torch import Tensor, nn

from lit_gpt_scratch import inspection
from lit_gpt_scratch.data.datamodule import CharDataModule
from lit_gpt_scratch.errors import InputError


@every_residual
@torch.no_grad()
def test_attention_returns_the_weights_of_each_head_in_layer_order(config: Path) -> None:
    model = single_network(config)
    found = inspection.attention(model, TEXT)
    modules = dict(model.net.named_modules())
    assert [id(modules[name]) for name, _ in found] == [
        id(attention_of(layer)) for layer in layers_of(model.net)
    ]
    inputs: dict[nn.Module, Tensor] = {}
    for name, _ in found:
        modules[name].register_forward_pre_hook(lambda m, x: inputs.update({m: x[0][0]}))
    residual(model.net, model.tokenizer.encode(TEXT))
    for name, weights in found:
        expected = attention_weights(modules[name], inputs[modules[name]])
        torch.testing.assert_close(weights, expected, atol=1e-5, rtol=1e-4)


def test_a_parameter_named_weights_is_no_attention() -> None:
    model = random_model(CONFIGS[0])
    model.net.register_parameter("weights", nn.Parameter(torch.zeros(1)))
    with pytest.raises(InputError, match="Bigram has no attention with a method `weights`"):
        inspection.attention(model, TEXT)


@every_ensemble
def test_attention_of_an_ensemble_is_that_of_its_members(config: Path) -> None:
    model = random_model(config)
    found = inspection.attention(model, TEXT)
    for i in range(len(model.net.members)):
        for name, expected in inspection.attention(inspection.member(model, i), TEXT):
            layer, weights = found.pop(0)
            assert layer == f"members.{i}.{name}"
            assert torch.equal(weights, expected)
    assert not found


@every_config
@torch.no_grad()
@pytest.mark.parametrize("length", [1, 5, 8])
def test_next_characters_equal_the_prediction_after_each_prefix(config: Path, length: int) -> None:
    model = random_model(config)
    ids = model.tokenizer.encode(TEXT[:length])
    found = inspection.next_characters(model, TEXT[:length])
    assert found.shape == (length, len(ALPHABET))
    for t in range(length):
        unnormalised = logits(model.net, ids[: t + 1])[-1].exp()
        expected = unnormalised / unnormalised.sum()
        torch.testing.assert_close(found[t], expected, atol=1e-6, rtol=1e-4)


@every_config
@torch.no_grad()
@pytest.mark.parametrize("text", [TEXT[:2], TEXT, TEXT + "y", LONG])
def test_token_losses_are_the_loss_of_each_character_but_the_first(config: Path, text: str) -> None:
    model = random_model(config)
    found = inspection.token_losses(model, text)
    torch.testing.assert_close(found.double(), losses(model, text), atol=1e-5, rtol=1e-4)


def test_mean_token_loss_of_a_long_text_equals_its_validation_loss(tmp_path: Path) -> None:
    model = model_named("transformer")
    (tmp_path / "text.txt").write_text(ALPHABET + LONG, encoding="utf-8")
    share = len(LONG) / len(ALPHABET + LONG)
    data = CharDataModule(str(tmp_path / "text.txt"), model.context, 4, share, alphabet=ALPHABET)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    (metrics,) = trainer.validate(model, data, verbose=False)
    mean = inspection.token_losses(model, LONG).mean().item()
    assert mean == pytest.approx(metrics["val/loss"], abs=1e-5)


@every_residual
@torch.no_grad()
def test_logit_lens_unembeds_each_stage_and_ends_with_the_prediction(config: Path) -> None:
    model = single_network(config)
    stages, found = inspection.logit_lens(model, TEXT)
    modules = dict(model.net.named_modules())
    assert [modules[name] for name in stages] == [model.net.embed, *layers_of(model.net)]
    expected_stages = residual(model.net, model.tokenizer.encode(TEXT))
    for x, probabilities in zip(expected_stages, found, strict=True):
        expected = unembed(model.net, x).softmax(-1)
        torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[-1], inspection.next_characters(model, TEXT))


@every_ensemble
@torch.no_grad()
def test_members_average_to_the_ensemble_and_are_copies(config: Path) -> None:
    model = random_model(config)
    members = [inspection.member(model, i) for i in range(len(model.net.members))]
    mean = sum(inspection.next_characters(one, TEXT) for one in members) / len(members)
    torch.testing.assert_close(mean, inspection.next_characters(model, TEXT))
    before = inspection.token_losses(model, LONG)
    for one in members:
        assert not one.training
        for parameter in one.parameters():
            parameter.zero_()
    assert torch.equal(inspection.token_losses(model, LONG), before)
