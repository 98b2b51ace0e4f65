"""Writes a model's arguments as plain data, so that its checkpoint can be read without pickle."""

import inspect
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from lit_gpt_scratch.private_api import INSTANTIATOR, INSTANTIATOR_KEY


def plain_hyperparameters(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with classes, and partials of them, as `class_path` and `init_args`.

    The command line passes them so already. A script passes classes: `LitCharLM(net=GPT)`, or
    `LitCharLM(net=partial(GPT, layers=2))`.
    """
    return {INSTANTIATOR_KEY: INSTANTIATOR} | {k: _plain(v) for k, v in arguments.items()}


def find_plugin(hyperparameters: Any) -> str | None:
    """Return the module of the first class from outside this package and PyTorch, or None."""
    if not isinstance(hyperparameters, Mapping):
        return None
    module = str(hyperparameters.get("class_path", "torch")).rpartition(".")[0] or "torch"
    if module.split(".")[0] not in ("lit_gpt_scratch", "torch"):
        return module
    found = map(find_plugin, hyperparameters.values())
    return next(filter(None, found), None)


def _plain(value: Any) -> Any:
    if not callable(value):
        return value
    factory, given = value, {}
    if isinstance(value, partial):
        # Jsonargparse makes partials of a function of its own, with the class as an argument.
        classes = [argument for argument in value.args if isinstance(argument, type)]
        factory, given = classes[-1] if classes else value.func, value.keywords
    # Write the defaults, too. Otherwise, if SGD replaces Muon, jsonargparse would give SGD the
    # default momentum of Muon, because both have an argument of that name.
    parameters = inspect.signature(factory).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    arguments = {name: _plain(part) for name, part in (defaults | given).items()}
    return {"class_path": _class_path(factory), "init_args": arguments}


def _class_path(factory: Any) -> str:
    """Return the shortest path, such as `lit_gpt_scratch.models.GPT`: it survives moved files."""
    module, name = factory.__module__, factory.__qualname__
    room = ".".join(module.split(".")[:2])
    return f"{room if getattr(sys.modules.get(room), name, None) is factory else module}.{name}"
