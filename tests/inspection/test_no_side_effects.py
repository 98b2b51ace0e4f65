"""Inspecting a model changes nothing, compiles nothing, and refuses wrong input clearly."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from laws import ALPHABET, random_ids
from reference_networks import LONG, TEXT, every_config, layers_of, model_named, random_model
from torch import Tensor, nn

from lit_gpt_scratch import inspection
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.training.module import LitCharLM


def losses_within(ablation: Callable[..., AbstractContextManager[None]], *part: int) -> Any:
    def call(model: LitCharLM) -> Tensor:
        with ablation(model, *part):
            return inspection.token_losses(model, LONG)

    return call


def patch(model: LitCharLM, corrupted: str, *more: Any) -> Any:
    return inspection.activation_patching(model, TEXT, corrupted, *more)


CORRUPTED = "GoodLucy"
FUNCTIONS: dict[str, Callable[[LitCharLM], Any]] = {
    "attention": lambda model: inspection.attention(model, TEXT),
    "next_characters": lambda model: inspection.next_characters(model, TEXT),
    "token_losses": lambda model: inspection.token_losses(model, LONG),
    "logit_lens": lambda model: inspection.logit_lens(model, TEXT),
    "trace": lambda model: inspection.trace(model, TEXT, CORRUPTED),
    "activation_patching": lambda model: patch(model, CORRUPTED, "a", "b"),
    "logit_attribution": lambda model: inspection.logit_attribution(model, TEXT),
    "head_costs": lambda model: inspection.head_costs(model, LONG),
    "layer_costs": lambda model: inspection.layer_costs(model, LONG),
    "position_costs": lambda model: inspection.position_costs(model, TEXT),
    "ablate_head": losses_within(inspection.ablate_head, 0, 0),
    "ablate_layer": losses_within(inspection.ablate_layer, 0),
    "ablate_position": losses_within(inspection.ablate_position, 3),
    "embeddings": inspection.embeddings,
    "unembeddings": inspection.unembeddings,
}
NEED_LAYERS = ("logit_lens", "head_costs", "layer_costs", "ablate_head", "ablate_layer")
NEED_EMBEDDING = (
    "position_costs", "ablate_position", "embeddings", "activation_patching", "logit_attribution",
)  # fmt: skip
ERRORS = {  # every other pair of a network and a function works
    **{("Bigram", name): "^Bigram has no layers.$" for name in NEED_LAYERS},
    ("Bigram", "attention"): "^Bigram has no attention with a method `weights`.$",
    **{("Ensemble", name): "^Ensemble has no layers of its own: use" for name in NEED_LAYERS},
    ("Ensemble", "unembeddings"): "^Ensemble has no layer from a residual .* of its own: use",
    **{("Ensemble", name): "^Ensemble has no embedding of its own: use" for name in NEED_EMBEDDING},
}


def tensors(found: Any) -> list[Tensor]:
    if isinstance(found, list | tuple):
        return [tensor for item in found for tensor in tensors(item)]
    return [found] if isinstance(found, Tensor) else []


def count_hooks(net: nn.Module) -> int:
    return sum(
        len(vars(module)[kind]) for module in net.modules() for kind in vars(module)
        if kind.endswith("_hooks")
    )  # fmt: skip


def modes(net: nn.Module) -> list[bool]:
    return [module.training for module in net.modules()]


@every_config
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_call_changes_nothing_and_ignores_the_training_mode(config: Path, function: str) -> None:
    """Outputs, parameters, modes and hooks stay as they were.

    The results are plain tensors; a part that the network does not have raises `InputError`.
    """
    model = random_model(config)
    net, ids = model.net, random_ids(len(ALPHABET), 2, model.context)
    before, weights = net(ids), copy.deepcopy(net.state_dict())
    error = ERRORS.get((type(net).__name__, function))
    found = []
    for training in (False, True):
        net.train(training)
        next(net.children()).eval()  # mixed modes, as when part of a network is frozen
        modes_before = modes(net)
        with pytest.raises(InputError, match=error) if error else ExitStack():
            found.append(tensors(FUNCTIONS[function](model)))
        assert count_hooks(net) == 0
        assert modes(net) == modes_before
    assert error or found[0]
    for first, second in zip(*found, strict=True) if found else ():
        assert torch.equal(first, second)
        assert first.isfinite().all()
        assert not first.requires_grad
        assert not first.is_inference(), "a notebook could not change it in place"
    assert torch.equal(net.eval()(ids), before)
    assert all(torch.equal(w, weights[name]) for name, w in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


@every_config
def test_an_exception_removes_own_hooks_and_restores_the_mode(config: Path) -> None:
    """Hooks that somebody else registered stay."""

    def fail(*_: object) -> None:
        raise RuntimeError("on purpose")

    model = random_model(config)
    model.net.train().register_forward_hook(fail)
    for name, call in FUNCTIONS.items():
        with suppress(RuntimeError, InputError):
            call(model)
            assert name in ("embeddings", "unembeddings"), "it did not run the network"
        assert count_hooks(model.net) == 1, name
        assert all(modes(model.net)), name


def test_nothing_is_compiled() -> None:
    """With hooks in it, a compiled block would be compiled again for every text length."""

    def refuse(*_: object) -> Any:
        raise AssertionError("compiled")

    model = model_named("gpt")
    uncompiled = {name: tensors(call(model)) for name, call in FUNCTIONS.items()}
    for block in layers_of(model.net):
        block.compile(backend=refuse)
    for name, expected in uncompiled.items():
        for one, other in zip(tensors(FUNCTIONS[name](model)), expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(
    "function", [inspection.attention, inspection.next_characters, inspection.logit_lens]
)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text has 0 characters: give at least 1 and at most 8, the model's context."),
        (TEXT + "y", "the text has 9 characters: give at least 1 and at most 8"),
        ("no way", "' ' at position 2"),
    ],
)
def test_a_text_that_does_not_fit_is_refused(function: Any, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        function(model_named("gpt_cpu"), text)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: inspection.token_losses(m, "G"), "has 1 characters: give at least 2.$"),
        (lambda m: inspection.position_costs(m, "G"), "has 1 characters: give at least 2 and at"),
        (lambda m: inspection.position_costs(m, TEXT + "y"), "has 9 characters: .* at most 8"),
        (lambda m: inspection.trace(m, "", ""), "are '' and '': give two different texts of equal"),
        (lambda m: inspection.trace(m, TEXT, TEXT), "give two different texts of equal length"),
        (lambda m: inspection.trace(m, TEXT, TEXT[1:]), "give two different texts of equal length"),
        (lambda m: inspection.trace(m, TEXT, "Go!dLuck"), "'!' at position 2"),
        (lambda m: inspection.trace(m, TEXT + "y", TEXT + "z"), "has 9 characters"),
        (lambda m: patch(m, TEXT, "a", "b"), "give two different texts of equal length"),
        (lambda m: patch(m, CORRUPTED, "a", "a"), "answer is 'a' and other is 'a': give two"),
        (lambda m: patch(m, CORRUPTED, "a", ""), "answer is 'a' and other is '': give two"),
        (lambda m: patch(m, CORRUPTED, "!", "a"), "'!' at position 0"),
        (lambda m: patch(m, CORRUPTED, "a", "b", 8), "position is 8: it must be from 0 to 7"),
        (lambda m: patch(m, CORRUPTED, "a", "b", 2), "'a' and 'b' differ by .* at position 2: cho"),
        (lambda m: inspection.logit_attribution(m, TEXT, -1), "position is -1: it must be from 0"),
        (lambda m: inspection.logit_attribution(m, ""), "the text has 0 characters"),
        (losses_within(inspection.ablate_head, 2, 0), "layer is 2: it must be from 0 to 1"),
        (losses_within(inspection.ablate_head, 0, 2), "head is 2: it must be from 0 to 1"),
        (losses_within(inspection.ablate_layer, -1), "layer is -1"),
        (losses_within(inspection.ablate_position, 8), "position is 8: it must be from 0 to 7"),
        (lambda m: inspection.member(m, 0), "ModernGPT has no members: it is one network already"),
        (lambda _: inspection.member(model_named("gpt_cpu_long"), 3), "member is 3: .* 0 to 2"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_name_and_range(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(model_named("gpt_cpu"))


def test_attention_without_the_method_weights_has_no_head_costs() -> None:
    """`weights` is optional: every other function still works."""
    model = model_named("gpt_cpu")
    for block in layers_of(model.net):
        block.attention = nn.Linear(32, 32)
    for name in ("attention", "head_costs"):
        with pytest.raises(InputError, match="ModernGPT has no attention with a method `weights`"):
            FUNCTIONS[name](model)
    assert inspection.layer_costs(model, LONG).shape == (2,)
