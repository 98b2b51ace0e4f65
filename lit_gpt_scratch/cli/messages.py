"""The parser, and its error messages as one line that names the value and the fix."""

import inspect
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models import attention, ensemble, modern, rotary
from lit_gpt_scratch.models import gpt as models
from lit_gpt_scratch.training import muon, optim, schedules

TRAINER_GROUP = "Customize every aspect of training via flags"
NUMBER = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}


def explain(message: str, known: Sequence[str]) -> str:
    """One readable line from a message of jsonargparse.

    Args:
        message: Theirs, of several lines and with Python's type names.
        known: Options and names that exist, to suggest the one that was meant.
    """
    text = " ".join(message.split()).replace("Problems parsing config", "--config is not YAML")
    text = text.replace(' in "<unicode string>",', ",")
    # 'Parser key "model.net": Parser key "layers":' is the key model.net.layers.
    keys = re.findall(r'Parser key "([^"]+)":', text)
    key = ".".join(keys)
    text = re.sub(r'Parser key "[^"]+":', "", text).strip()
    unknown = (
        re.search(r"unrecognized arguments: (?:--)?([^\s=]+)", text)
        or re.search(r"does not accept option '([^']+)'", text)
        or re.search(r"Option '([^']+)' is not accepted", text)
        or re.search(r"has no attribute '([^']+)'", text)
        or re.search(r"Expected a dot import path string: (\S+)", text)
        or re.search(r"No module named '([^']+)'", text)
    )
    if unknown:
        return _unknown(unknown[1], key, known)
    wrong = re.search(r"Expected an? (.+?)\. Got value: (.*?)(?:\. Got value: .*)?$", text)
    if wrong:
        return f"{key} is {wrong[2]!r}: it must be {_type(wrong[1])}."
    several = re.search(r"Multiple subclasses with name (\w+)\..*?: (.+)\.$", text)
    if several:
        return f"{key} is {several[1]!r}: give the full name of one of {several[2]}."
    choice = re.search(r"Subtypes: \[(.+?)\] Errors: .* Given value: (.*)", text)
    if choice:
        kinds = [
            _type(kind) for kind in re.findall(r"<class '\w+'>|typing\.Literal\[[^]]+\]", choice[1])
        ]
        return f"{key} is {choice[2]!r}: it must be {' or '.join(kinds)}."
    return f"{key}: {text}" if key else text


def _unknown(name: str, key: str, known: Sequence[str]) -> str:
    """An option, key or class that does not exist, and the one that was probably meant."""
    full = f"{key}.{name}" if key and name[:1].islower() else name
    # Compared by its whole name first, then by its last part, which is all that a class's own has.
    short = {word.rpartition(".")[2]: word for word in reversed(known)}
    last = name.rpartition(".")[2]
    close = get_close_matches(full, known, 1, 0.7)
    close = close or [short[word] for word in get_close_matches(last, short, 1, 0.6)]
    close = [word for word in close if word != full]  # another class of that place has it
    hint = f": did you mean {close[0]}?" if close else ": --help lists what there is."
    return f"there is no {full!r}{f' for {key}' if key and full == name else ''}{hint}"


def _type(kind: str) -> str:
    choices = re.findall(r"'([^']+)'", kind) if "Literal" in kind else []
    if choices:
        return " or ".join(choices)
    plain = re.sub(r"<class '([^']+)'>", r"\1", kind)
    return NUMBER.get(plain, "null" if plain == "NoneType" else plain)


def names_of_parts() -> list[str]:
    """The classes that a config can name, and their arguments: what a typo may have meant."""
    names = []
    for module in (models, ensemble, modern, attention, rotary, optim, muon, schedules):
        for name, part in vars(module).items():
            if isinstance(part, type) and part.__module__ == module.__name__:
                names += [name, *inspect.signature(part).parameters]
    return names


class Parser(LightningArgumentParser):
    """Reports a mistake as one line, and lists the Trainer's many options last."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        if not self.exit_on_error:  # an inner parser: the outer one says where the mistake is
            super().error(message, ex)
        commands: Any = getattr(self, "_subcommands_action", None)
        parsers = [self, *(commands.choices.values() if commands else ())]
        # The base class': ours leaves out the arguments of classes.
        defaults = [LightningArgumentParser.get_defaults(p) for p in parsers]
        flags = [key.replace(".init_args", "") for found in defaults for key, _ in found.items()]
        raise InputError(explain(message, [*flags, *names_of_parts()]))

    def get_defaults(self, *args: Any, **kwargs: Any) -> Any:
        """Without the arguments of a class that is itself a default: its own defaults follow.

        Another class that takes its place would inherit those of the same name: AdamW Muon's lr.
        """
        config = super().get_defaults(*args, **kwargs)
        actions: Any = self._actions
        for action in actions:
            if isinstance(action.default, dict) and "init_args" not in action.default:
                value = config.get(action.dest)
                if isinstance(value, Namespace):
                    value.pop("init_args", None)
        return config

    def format_help(self, *args: Any) -> str:
        groups: Any = self._action_groups
        groups.sort(key=lambda group: group.title == TRAINER_GROUP)
        return super().format_help(*args)
