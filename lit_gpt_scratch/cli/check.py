"""`lit-gpt-scratch check`: tries the laws of a network on a new attention, or on a network."""

import argparse
import importlib
import inspect
from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from lit_gpt_scratch import models
from lit_gpt_scratch.checkpoints.plugins import import_plugin, modules_of
from lit_gpt_scratch.cli.messages import Parser, classes_for, explain
from lit_gpt_scratch.cli.program import own_configs
from lit_gpt_scratch.errors import InputError, describe_error, exit_on_input_error
from lit_gpt_scratch.inspection import laws
from lit_gpt_scratch.models import GPT, count_parameters
from lit_gpt_scratch.models.attention import shows_weights
from lit_gpt_scratch.models.kv_cache import takes_cache
from lit_gpt_scratch.shell import PROGRAM

ALPHABET_SIZE, CONTEXT, WIDTH = 17, 12, 32
LAWS = {
    "forward": (laws.breaks_forward, "the output is finite and has the right shape"),
    "shape": (laws.breaks_shape, "logits for every length, equal to those of a longer text"),
    "causal": (laws.breaks_causality, "no character changes an earlier prediction"),
    "weights": (laws.breaks_weights, "weights(x) has the right shape and only looks back"),
    "gradients": (
        laws.breaks_gradients,
        "every parameter gets one, finite and not zero everywhere, in fp32 and in bf16",
    ),
    "cache": (laws.breaks_cache, "generation with a cache gives the same logits"),
    "start": (laws.breaks_start, "the loss before training is near log V"),
    "repeatable": (laws.breaks_determinism, "in evaluation, equal texts have equal logits"),
    "learns": (laws.breaks_learning, "memorises one batch"),
}
NOT_OFFERED = {  # what to add to a class so that the law applies
    "weights": "no pictures: add a method weights(x) that returns (B, H, T, T)",
    "cache": "generation computes all characters again: add the argument, forward(x, cache=None)",
}


def import_module(name: str) -> ModuleType | None:
    """Return the module with a name, or of a file my_module.py; None: there is no such module.

    Raises:
        InputError: There is no such file.
    """
    if name.endswith(".py"):
        return import_plugin(name)
    if name.startswith("."):
        return None
    try:
        with modules_of(Path.cwd()):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise  # a module that the user's module imports
        return None


def find_class(name: str, plugin: ModuleType | None) -> Any:
    """Return the class with a path such as my_module.Mine, my_module:Mine or my_module.py:Mine.

    A name without a module is that of a class in models or in the plugin.

    Raises:
        InputError: There is none. The text lists the classes that there are.
    """
    place, sign, last = name.rpartition(":" if ":" in name else ".")
    if name.endswith(".py"):
        place, sign, last = name, ":", ""
    module = import_module(place) if place else plugin
    if place and not module:
        raise InputError(
            f"{name}: there is no module {place} in {Path.cwd()} or among the installed packages. "
            "Give its file, as in check folder/my_module.py:MyAttention."
        )
    found = getattr(module, last, None) or (None if place else getattr(models, last, None))
    if isinstance(found, type):
        return found
    if inspect.isroutine(found):
        raise InputError(f"{name} is a function: give a class.")
    if name in own_configs():
        raise InputError(
            f"{name} is a config: give a class, as in check my_module.MyAttention. "
            f"To train a config: {PROGRAM} fit --config {name}."
        )
    if last and (alone := import_module(name)):
        module, place, sign, last = alone, name, ".", ""
    if place:
        classes = {kind: f"{place}{sign}{kind}" for kind in networks_in(module)}
    else:
        paths = classes_for("attention", plugin) + classes_for("net", plugin)
        classes = {path.rpartition(".")[2]: path for path in paths}
    if not classes:
        raise InputError(f"{place} has no attention and no network: no class is a torch.nn.Module.")
    if not last:
        example = next(iter(classes.values()))
        raise InputError(f"{place} has {', '.join(classes)}: give one, as in check {example}.")
    close = get_close_matches(last, classes, 1, 0.5)
    hint = f": did you mean {classes[close[0]]}?" if close else "."
    raise InputError(f"there is no class {name}{hint} There are {', '.join(classes.values())}.")


def networks_in(module: Any) -> list[str]:
    """Return the names of the network classes that a module, or a part of a package, defines."""
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, nn.Module)
        and f"{value.__module__}.".startswith(f"{module.__name__}.")
    ]


def build(kind: Any, flags: Sequence[str]) -> tuple[nn.Module, str]:
    """Return a network with random weights, and what it is. An attention is put into a small GPT.

    Args:
        kind: The class.
        flags: Its arguments, as in --heads 8.

    Raises:
        InputError: The class is neither an attention nor a network, or a flag is wrong.
    """
    names = Parser().add_class_arguments(kind, fail_untyped=False)
    is_net = "alphabet_size" in names
    if not is_net and "width" not in names:
        raise InputError(
            f"{kind.__name__} takes {', '.join(names) or 'no arguments'}: an attention takes "
            "width, a network takes alphabet_size and context."
        )
    given = {"alphabet_size": ALPHABET_SIZE, "context": CONTEXT} if is_net else {}
    arguments = read_arguments(kind, flags, set(given))
    torch.manual_seed(0)
    if is_net:
        return kind(**given, **arguments), "as a network"
    width = arguments.pop("width")
    attention = partial(kind, **arguments)
    net = GPT(ALPHABET_SIZE, CONTEXT, layers=1, width=width, attention=attention)
    return net, f"as the attention of a GPT of one block, width {width}"


def read_arguments(kind: Any, flags: Sequence[str], given: set[str]) -> dict[str, Any]:
    """Return the arguments of a class, except those in `given`: from flags, else its defaults.

    Raises:
        InputError: A flag has no value or the wrong type, is unknown, or is missing.
    """
    parser = Parser(exit_on_error=False, allow_abbrev=False)
    names = parser.add_class_arguments(kind, skip=given, fail_untyped=False)
    if "width" in names:
        parser.set_defaults(width=WIDTH)
    try:
        arguments = dict(vars(parser.instantiate(parser.parse_args(flags))))
    except argparse.ArgumentError as error:
        text = str(error)
        text = explain(text, []) if text.startswith("Parser key") else text
        takes = ", ".join(f"--{name}" for name in names)
        raise InputError(f"{kind.__name__}: {text.rstrip('.')}. It takes {takes}.") from error
    for name, value in arguments.items():
        argument = inspect.signature(kind).parameters.get(name)
        is_untyped = argument is not None and argument.annotation is argument.empty
        needs_number = is_untyped and isinstance(parser.get_default(name), int | float)
        if needs_number and not isinstance(value, int | float):
            raise InputError(f"{kind.__name__}: --{name} is {value!r}: it must be a number.")
    return arguments


def check(net: nn.Module) -> dict[str, str]:
    """Return what breaks each law; empty: it holds. A law that does not apply is left out.

    If the law `forward` does not hold, the others are left out: they would say the same less well.
    """
    found = {}
    for name, (law, _) in LAWS.items():
        if name == "cache" and not takes_cache(net):
            continue
        if name == "weights" and not shows_weights(net):
            continue
        try:
            found[name] = law(net, ALPHABET_SIZE, CONTEXT)
        except Exception as error:  # of the user's class
            found[name] = describe_error(error)
        if found["forward"]:
            break
    return found


def main(args: Sequence[str] | None = None) -> None:
    """Run the command. The exit code is 1 if a law does not hold."""
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} check",
        usage=f"{PROGRAM} check CLASS [--plugin MODULE] [arguments of the class, as --heads 8]",
        description="Say in words which laws of a language model a new attention or network obeys.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument(
        "name",
        nargs="?",
        metavar="CLASS",
        help="for example my_module.MyAttention or folder/my_module.py:MyAttention",
    )
    parser.add_argument("--plugin", help="your own module, or its file")
    with exit_on_input_error(parser.prog):
        options, flags = parser.parse_known_args(args)
        if not options.name:
            raise InputError("give a class, for example my_module.MyAttention.")
        net, what = build(find_class(options.name, import_plugin(options.plugin)), flags)
    print(f"{options.name} {what}: {count_parameters(net):,} parameters")
    found = check(net)
    for name, (_, text) in LAWS.items():
        if name in found:
            print(f"  {'FAILS' if found[name] else 'holds':<11}  {name:<11} {found[name] or text}")
        elif not found["forward"]:
            print(f"  not offered  {name:<11} {NOT_OFFERED[name]}")
    if any(found.values()):
        raise SystemExit(1)
