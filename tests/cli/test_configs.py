"""Laws that every file in configs/ obeys. A new file is found by glob and tested at once."""

import importlib
import inspect
import math
from pathlib import Path

import pytest
import torch
from laws import (
    CONFIGS,
    assert_causal,
    parse,
    random_ids,
    settings,
    small,
    train_small,
    with_random_weights,
)
from torch import Tensor
from torch.nn import functional as F

from lit_gpt_scratch.cli import main
from lit_gpt_scratch.inspection import laws as laws_of_networks
from lit_gpt_scratch.models.kv_cache import takes_cache
from lit_gpt_scratch.training.compilation import OPTIONS, compile_blocks
from lit_gpt_scratch.training.module import LitCharLM
from lit_gpt_scratch.training.optim import AdamW, parameter_groups


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def config(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def model(config: Path) -> LitCharLM:
    """The config's model as the command line makes it, but small."""
    return small(config)


def loss_of(model: LitCharLM, ids: Tensor) -> Tensor:
    """Return the mean loss in nats of ids (B, T + 1)."""
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1).float(), ids[:, 1:].flatten())


def random_batch(model: LitCharLM) -> Tensor:
    """Return uniform random ids (16, T + 1)."""
    return random_ids(len(model.tokenizer), 16, model.context + 1)


def test_there_is_a_config_for_every_rung() -> None:
    """Otherwise the tests below would test nothing."""
    rungs = {"bigram", "mean", "single_head", "multi_head", "transformer", "gpt", "gpt_cpu"}
    assert rungs <= {path.stem for path in CONFIGS}


def test_changing_a_later_character_never_changes_an_earlier_logit(model: LitCharLM) -> None:
    assert_causal(model.net, len(model.tokenizer), model.context)


def test_a_text_of_any_length_up_to_the_context_has_logits(model: LitCharLM) -> None:
    """Of shape (B, T, V); they equal the first logits of a longer text."""
    assert laws_of_networks.breaks_shape(model.net, len(model.tokenizer), model.context) == ""


def test_every_parameter_gets_a_finite_gradient(config: Path, model: LitCharLM) -> None:
    """In the precision of the config. With random weights, no gradient is zero everywhere.

    Some initial weights are zero, and make the gradients of others zero.
    """
    precision = str(settings(config).trainer.precision)
    for net in (model.net, with_random_weights(model.net)):
        model.net = net.train()
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in precision):
            loss = loss_of(model, random_batch(model))
        loss.backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    for name, parameter in net.named_parameters():
        assert parameter.grad.any(), name


def assert_compiled_gradients_equal_eager_ones(model: LitCharLM, backend: str) -> None:
    torch.compiler.reset()  # forget what earlier tests compiled
    model.net, ids = with_random_weights(model.net), random_batch(model)
    weights = dict(model.net.named_parameters())
    eager = torch.autograd.grad(loss_of(model, ids), list(weights.values()))
    if backend == "inductor":
        compile_blocks(model.net, options=OPTIONS)
    else:
        compile_blocks(model.net, backend=backend)
    compiled = torch.autograd.grad(loss_of(model, ids), list(weights.values()))
    for name, expected, actual in zip(weights, eager, compiled, strict=True):
        assert (actual - expected).norm() < 1e-4 * expected.norm(), name


def test_compiled_gradients_equal_eager_gradients(model: LitCharLM) -> None:
    """PyTorch 2.11 once compiled an RMSNorm to wrong gradients, without a warning.

    This backend finds that in a fraction of the time, because it generates no code.
    """
    assert_compiled_gradients_equal_eager_ones(model, "aot_eager")


@pytest.mark.slow
def test_generated_code_has_the_gradients_of_eager_code() -> None:
    """Of the default network, as `--model.compile true` makes it."""
    [config] = [path for path in CONFIGS if path.stem == "gpt_cpu"]
    assert_compiled_gradients_equal_eager_ones(small(config), "inductor")


@torch.no_grad()
def test_an_untrained_network_predicts_uniformly(model: LitCharLM) -> None:
    """Its loss is near log V."""
    loss = loss_of(model, random_batch(model)).item()
    assert loss == pytest.approx(math.log(len(model.tokenizer)), rel=0.1)


def test_every_network_can_overfit_one_batch(model: LitCharLM) -> None:
    """The characters repeat in a cycle that is longer than the context.

    The last character determines the next one (a bigram sees only that), and so does the mean of
    all characters so far (mean attention sees only that).
    """
    round_trip = model.context + 4
    steps = torch.arange(model.context + 1)
    batch = (torch.arange(round_trip)[:, None] + steps) % round_trip
    optimizer = AdamW(parameter_groups(model.net), lr=0.01)
    model.train()
    for _ in range(500):
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        if loss < 0.15:
            break
    with torch.no_grad():
        assert loss_of(model.eval(), batch).item() < 0.2


def test_the_optimizer_and_schedule_of_the_config_lower_the_loss(model: LitCharLM) -> None:
    batch = random_batch(model)
    optimizer = model.make_optimizer(params=parameter_groups(model.net))
    schedule = model.make_schedule and model.make_schedule(optimizer=optimizer, steps=20)
    before = loss_of(model.eval(), batch).item()
    for _ in range(20):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
        if schedule:
            schedule.step()
    assert loss_of(model, batch).item() < before - 0.005


@torch.no_grad()
@pytest.mark.parametrize(
    "config",
    [path for path in CONFIGS if takes_cache(small(path).net)],
    ids=lambda path: path.stem,
    indirect=True,
)
def test_logits_with_a_cache_equal_those_without(model: LitCharLM) -> None:
    """To 1e-5 in fp32, however the text is split into pieces."""
    assert laws_of_networks.breaks_cache(model.net, len(model.tokenizer), model.context) == ""


def test_every_gpt_takes_a_cache() -> None:
    """Otherwise the test above would test nothing."""
    gpts = [path for path in CONFIGS if path.stem == "transformer" or path.stem.startswith("gpt")]
    assert len(gpts) > 1
    assert all(takes_cache(small(path).net) for path in gpts)


def test_evaluation_is_deterministic(model: LitCharLM) -> None:
    """Dropout is off, no random number is drawn, and nothing is kept from an earlier call."""
    assert laws_of_networks.breaks_determinism(model.net, len(model.tokenizer), model.context) == ""


def test_attention_weights_are_probabilities_over_the_past(model: LitCharLM) -> None:
    """(B, H, T, T): rows sum to 1, none is negative, and later characters have weight 0."""
    assert laws_of_networks.breaks_weights(model.net, len(model.tokenizer), model.context) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "net", "sizes"),
    [("gpt", "model.net", []), ("gpt_gpu", "model.net.net", ["--model.net.size=2"])],
)
def test_a_gpu_config_trains_compiled_in_bf16_on_this_machine(
    name: str, net: str, sizes: list[str], tmp_path: Path
) -> None:
    """At a small size: it trains, validates, and saves a checkpoint that validates the same."""
    config = next(path for path in CONFIGS if path.stem == name)
    assert settings(config).model.compile
    assert settings(config).trainer.precision == "bf16-mixed"
    sizes = [*sizes, f"--{net}.layers=1", f"--{net}.width=16", f"--{net}.attention.heads=2"]
    cli = train_small(tmp_path, *sizes, config=config)
    assert cli.trainer.global_step == 4
    assert math.isfinite(cli.trainer.callback_metrics["val/loss"])
    validated = main(["validate", "--ckpt_path", str(cli.folder / "checkpoints" / "last.ckpt")])
    first, second = (float(run.trainer.callback_metrics["val/loss"]) for run in (cli, validated))
    assert first == pytest.approx(second, abs=1e-3)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("optimizer", "lit_gpt_scratch.training.AdamW"),
        ("schedule", "lit_gpt_scratch.training.WarmupCosine"),
        ("net", "lit_gpt_scratch.models.GPT"),
        ("net.attention", "lit_gpt_scratch.models.FusedAttention"),
    ],
)
def test_a_class_that_replaces_a_default_has_its_own_defaults(key: str, name: str) -> None:
    """AdamW does not get the learning rate of Muon, the default optimizer."""
    found = parse(f"--model.{key}={name}").config.model
    for part in key.split("."):
        found = found[part] if part in found else found.init_args[part]
    module, _, class_name = name.rpartition(".")
    signature = inspect.signature(getattr(importlib.import_module(module), class_name))
    plain = {k: p.default for k, p in signature.parameters.items() if k in found.init_args}
    for argument, value in plain.items():
        if not isinstance(value, type):  # a class has its own line here
            assert found.init_args[argument] == value, argument
    assert plain
