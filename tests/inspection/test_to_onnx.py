"""Exports as ONNX: onnxruntime computes what PyTorch and `inspection` compute."""

import contextlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from laws import ALPHABET, CONFIGS, random_ids, small, with_random_weights
from onnxruntime import InferenceSession
from torch import Tensor, nn

from lit_gpt_scratch import inspection
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.inspection import to_onnx
from lit_gpt_scratch.inspection.to_onnx import onnx_files
from lit_gpt_scratch.models import GPT, MultiHeadAttention
from lit_gpt_scratch.training import LitCharLM

CONTEXT = 8
SIZES = [(1, 1), (3, 2), (1, 5), (2, CONTEXT)]


class Distant(MultiHeadAttention):
    """A user's attention: ALiBi, as in README.md."""

    def attend(self, q: Tensor, k: Tensor) -> Tensor:
        position = torch.arange(k.size(-2), device=q.device)
        distance = position[-q.size(-2) :, None] - position
        scores = q @ k.transpose(-2, -1) - distance
        return scores.masked_fill(distance < 0, -torch.inf).softmax(-1)


class Plain(nn.Module):
    """A user's network: no attention, no residual stream. One parameter is called `weights`."""

    def __init__(self, alphabet_size: int, context: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(alphabet_size, alphabet_size))

    def forward(self, ids: Tensor) -> Tensor:
        return self.weights[ids].cumsum(1)


class Headless(Plain):
    """A user's network with `unembed`, but without `embed` and without layers."""

    def unembed(self, x: Tensor) -> Tensor:
        return x


class FixedLength(Plain):
    """Python's int() fixes the length in the export."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * torch.ones(int(ids.size(1)), 1)


class FixedSize(Plain):
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * torch.ones(int(ids.size(0)), int(ids.size(1)), 1)


class Noisy(Plain):
    """Each call gives other logits, so that no export equals it."""

    def forward(self, ids: Tensor) -> Tensor:
        logits = super().forward(ids)
        return logits + torch.rand_like(logits)


class Impossible(Plain):
    """What it computes depends on the values of its input."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * ids.sum().item() if ids.sum() > 1 else self.weights[ids]


def tiny(config: Path) -> LitCharLM:
    """Return a model of a config with one layer and at most two members, and random weights."""
    model = small(config)
    model.net = net = with_random_weights(model.net)
    if hasattr(net, "members"):
        net.members = net.members[:2]
    for part in getattr(net, "members", [net]):
        if hasattr(part, "blocks"):
            part.blocks = part.blocks[:1]
    return model


def own(net: Any, context: int = CONTEXT) -> LitCharLM:
    torch.manual_seed(0)
    model = LitCharLM(net=net, alphabet=ALPHABET, context=context)
    model.net = with_random_weights(model.net)
    return model


# These configs use the classes of other configs, in other sizes.
SLOW = {"gpt", "gpt_cpu_short", "gpt_gpu"}
MODELS: dict[str, Any] = {config.stem: partial(tiny, config) for config in CONFIGS}
MODELS["a plugin's attention"] = partial(own, partial(GPT, layers=1, width=16, attention=Distant))


class Exported:
    """A model, its files, and what onnxruntime computes with them."""

    def __init__(self, model: LitCharLM) -> None:
        self.model = model
        self.files = onnx_files(model, {"val_loss": 1.5})
        self.config = json.loads(self.files["config.json"])
        self.session = InferenceSession(self.files["model.onnx"])
        self.names = [output.name for output in self.session.get_outputs()]

    def run(self, ids: Tensor) -> dict[str, Tensor]:
        found = self.session.run(None, {"ids": ids.numpy()})
        return dict(zip(self.names, map(torch.tensor, found), strict=True))


@pytest.fixture(
    scope="module",
    params=[pytest.param(m, marks=pytest.mark.slow if m in SLOW else ()) for m in MODELS],
)
def exported(request: pytest.FixtureRequest) -> Exported:
    return Exported(MODELS[request.param]())


def text_of(length: int) -> str:
    return "".join(ALPHABET[i] for i in random_ids(len(ALPHABET), length, seed=length))


close = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_logits_of_texts_of_any_number_and_length_equal_those_of_pytorch(
    exported: Exported,
) -> None:
    for size in SIZES:
        ids = random_ids(len(ALPHABET), *size)
        close(exported.run(ids)["logits"], exported.model.net(ids))


def test_attention_weights_equal_those_of_inspection(exported: Exported) -> None:
    meanings = {output["name"]: output["meaning"] for output in exported.config["outputs"]}
    for length in (1, 6):
        text, expected = text_of(length), []
        with contextlib.suppress(InputError):  # a bigram has none
            expected = inspection.attention(exported.model, text)
        outputs = exported.run(exported.model.tokenizer.encode(text)[None])
        names = [name for name in outputs if name.startswith("attention")]
        for name, (layer, weights) in zip(names, expected, strict=True):
            close(outputs[name][0], weights)
            assert meanings[name].endswith(f" of {layer}")


def test_the_lens_equals_that_of_inspection(exported: Exported) -> None:
    meanings = {output["name"]: output["meaning"] for output in exported.config["outputs"]}
    for length in (1, 6):
        text = text_of(length)
        outputs = exported.run(exported.model.tokenizer.encode(text)[None])
        names = [name for name in outputs if name.startswith("lens")]
        if not hasattr(exported.model.net, "unembed"):
            assert not names
            continue
        stages, probabilities = inspection.logit_lens(exported.model, text)
        for name, stage, expected in zip(names, stages, probabilities, strict=True):
            close(outputs[name][0], expected)
            assert meanings[name].endswith(f" from {stage}")


def test_the_config_describes_the_file(exported: Exported) -> None:
    config, model = exported.config, exported.model
    assert (config["alphabet"], config["context"]) == (ALPHABET, model.context)
    assert (config["length"], config["val_loss"]) == ("dynamic", 1.5)
    [ids] = config["inputs"]
    found = exported.session.get_inputs() + exported.session.get_outputs()
    assert [[i["name"], i["shape"]] for i in [ids, *config["outputs"]]] == [
        [value.name, value.shape] for value in found
    ]
    assert (ids["type"], ids["shape"]) == ("int64", ["batch", "length"])
    assert config["outputs"][0]["shape"] == ["batch", "length", len(ALPHABET)]
    graph = onnx.load_from_string(exported.files["model.onnx"])
    onnx.checker.check_model(graph)
    assert not any(weight.external_data for weight in graph.graph.initializer)


def test_the_file_names_no_folder_of_this_computer(exported: Exported) -> None:
    assert str(Path(to_onnx.__file__).parent).encode() not in exported.files["model.onnx"]
    assert b"stack_trace" not in exported.files["model.onnx"]


def test_no_hook_is_left(exported: Exported) -> None:
    for module in exported.model.net.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_the_mode_of_the_model_is_left_as_it_was() -> None:
    model = own(Plain)
    model.net.train()
    onnx_files(model, {})
    assert model.net.training


@pytest.mark.parametrize("net", [Plain, Headless])
def test_a_network_without_attention_and_residual_stream_has_logits_only(net: Any) -> None:
    found = Exported(own(net))
    assert found.names == ["logits"]
    ids = random_ids(len(ALPHABET), 3, 5)
    close(found.run(ids)["logits"], found.model.net(ids))


@pytest.mark.parametrize(("net", "texts"), [(FixedLength, 3), (FixedSize, 1)])
def test_a_network_that_fixes_its_length_reads_padded_texts_and_says_so(
    net: Any, texts: int, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Exported(own(net))
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    read = "one text" if texts == 1 else "texts"
    assert f"Notice: the export reads {read} of 8 characters only, so pad shorter ones" in said
    assert found.config["length"] == "padded"
    assert found.config["inputs"][0]["shape"] == [1 if texts == 1 else "batch", CONTEXT]
    ids = random_ids(len(ALPHABET), texts, CONTEXT)
    padded = ids.clone()
    padded[:, 5:] = 0
    close(found.run(padded)["logits"][:, :5], found.model.net(ids)[:, :5])


def test_a_context_of_one_character_is_never_padded(capsys: pytest.CaptureFixture[str]) -> None:
    found = Exported(own(Plain, context=1))
    assert not capsys.readouterr().err
    assert found.config["length"] == "dynamic"
    ids = random_ids(len(ALPHABET), 3, 1)
    close(found.run(ids)["logits"], found.model.net(ids))


@pytest.mark.parametrize("net", [Noisy, Impossible])
def test_what_cannot_be_exported_is_refused_in_one_line(
    net: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also an export that computes something else than the network."""
    with pytest.raises(InputError, match=f"PyTorch cannot export {net.__name__} to ONNX: ") as e:
        onnx_files(own(net), {})
    assert "\n" not in str(e.value)
    assert capfd.readouterr() == ("", "")
