"""`lit-gpt-scratch check`: tries the laws of a network on a new attention, or on a network."""

import argparse
import importlib
import inspect
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml
from torch import nn

from lit_gpt_scratch import models
from lit_gpt_scratch.checkpoints.plugins import import_plugin, modules_of
from lit_gpt_scratch.cli.messages import classes_for
from lit_gpt_scratch.errors import InputError, describe_error, exit_on_input_error
from lit_gpt_scratch.inspection import laws
from lit_gpt_scratch.models import GPT, count_parameters
from lit_gpt_scratch.models.kv_cache import takes_cache
from lit_gpt_scratch.shell import PROGRAM

ALPHABET_SIZE, CONTEXT, WIDTH = 17, 12, 32
LAWS = {
    "shape": (laws.breaks_shape, "logits for every length, equal to those of a longer text"),
    "causal": (laws.breaks_causality, "no character changes an earlier prediction"),
    "weights": (laws.breaks_weights, "weights(x) has the right shape and only looks back"),
    "gradients": (
        laws.breaks_gradients,
        "finite, and not all zero, for every parameter, in fp32 and bf16",
    ),
    "cache": (laws.breaks_cache, "generation with a cache gives the same logits"),
    "start": (laws.breaks_start, "the loss before training is near log V"),
    "repeatable": (laws.breaks_determinism, "in evaluation, equal texts have equal logits"),
    "learns": (laws.breaks_learning, "memorises one batch"),
}


def find_class(name: str, plugin: ModuleType | None) -> Any:
    """Return the class with a path such as my_module.Mine, or a name in models or in the plugin.

    Raises:
        InputError: There is none.
    """
    path, _, last = name.rpartition(".")
    if last == "py" or not all(map(str.isidentifier, name.split("."))):
        raise InputError(
            f"{name} is not the name of a class: give the class, and its file with --plugin, as in "
            "MyAttention --plugin my_module.py."
        )
    modules: list[Any] = [models, plugin]
    if path:
        try:
            with modules_of(Path.cwd()):
                modules = [importlib.import_module(path)]
        except ModuleNotFoundError as error:
            if not path.startswith(error.name or path):
                raise  # a module that the user's module imports
            raise InputError(
                f"{name}: there is no module {path} in {Path.cwd()} or among the installed "
                "packages. Give its file with --plugin."
            ) from error
    for module in modules:
        if isinstance(found := getattr(module, last, None), type):
            return found
    known = ", ".join(classes_for("attention", plugin) + classes_for("net", plugin))
    raise InputError(f"there is no class {name}. There are {known}.")


def build(kind: Any, arguments: dict[str, Any]) -> tuple[nn.Module, str]:
    """Return a network with random weights, and what it is. An attention is put into a small GPT.

    Raises:
        InputError: The class is neither an attention nor a network, or lacks an argument.
    """
    taken = inspect.signature(kind).parameters
    is_net = {"alphabet_size", "context"} <= taken.keys()
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    if not is_net and "width" not in taken:
        raise InputError(
            f"{kind.__name__} takes {', '.join(taken)}: an attention takes width, a network takes "
            "alphabet_size and context."
        )
    needed = {n for n, p in taken.items() if p.default is p.empty and p.kind in kinds}
    given = {"alphabet_size", "context"} if is_net else set()
    missing = needed - given - {"width"} - arguments.keys()
    unknown = arguments.keys() - (taken.keys() - given)
    if missing or unknown:
        name = sorted(missing or unknown)[0]
        problem = f"needs --{name}" if missing else f"has no argument {name}"
        raise InputError(f"{kind.__name__} {problem}: it takes {', '.join(taken)}.")
    torch.manual_seed(0)
    values = {"width": WIDTH} | arguments
    if is_net:
        values = {name: value for name, value in values.items() if name in taken}
        return kind(alphabet_size=ALPHABET_SIZE, context=CONTEXT, **values), "as a network"
    width = values.pop("width")
    attention = partial(kind, **values)
    net = GPT(ALPHABET_SIZE, CONTEXT, layers=1, width=width, attention=attention)
    return net, f"as the attention of a GPT of one block, width {width}"


def check(net: nn.Module) -> dict[str, str]:
    """Return what breaks each law; empty: it holds. A law that does not apply is left out.

    An exception breaks a law, too.
    """
    found = {}
    for name, (law, _) in LAWS.items():
        if name == "cache" and not takes_cache(net):
            continue
        if name == "weights" and not any(hasattr(m, "weights") for m in net.modules()):
            continue
        try:
            found[name] = law(net, ALPHABET_SIZE, CONTEXT)
        except Exception as error:
            found[name] = describe_error(error)
    return found


def parse(name: str, text: str) -> Any:
    """Return the value of an argument of the class, which is read as YAML."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: day 2000-13-01
        raise InputError(
            f"--{name} is {text[:100]!r}: give a number, true, false, a text, or a list such as "
            "[1, 2]."
        ) from error


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
        "name", nargs="?", metavar="CLASS", help="for example my_module.MyAttention"
    )
    parser.add_argument("--plugin", help="your own module, or its file")
    with exit_on_input_error(parser.prog):
        options, flags = parser.parse_known_args(args)
        if not options.name:
            raise InputError("give a class, for example my_module.MyAttention.")
        words = [word for flag in flags for word in flag.split("=", 1)]
        names = [word.removeprefix("--") for word in words[::2]]
        if len(words) % 2 or not all(word.startswith("--") for word in words[::2]):
            raise InputError(f"{' '.join(flags)}: give arguments of the class, as in --heads 8.")
        arguments = {n: parse(n, text) for n, text in zip(names, words[1::2], strict=True)}
        net, what = build(find_class(options.name, import_plugin(options.plugin)), arguments)
    print(f"{options.name} {what}: {count_parameters(net):,} parameters")
    found = check(net)
    for name, (_, text) in LAWS.items():
        if name not in found:
            reason = (
                "generation computes all characters again" if name == "cache" else "no pictures"
            )
            print(f"  not offered  {name:<11} {reason}")
        else:
            print(f"  {'FAILS' if found[name] else 'holds':<11}  {name:<11} {found[name] or text}")
    if any(found.values()):
        raise SystemExit(1)
