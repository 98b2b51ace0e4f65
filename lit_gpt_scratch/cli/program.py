"""The list of commands, and what starts one of them."""

import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from io import TextIOWrapper
from typing import Any

from lit_gpt_scratch.errors import exit_with_error

PROGRAM = "lit-gpt-scratch"
# Commands of Lightning's CLI, and of modules that have a `main` of their own.
TRAINER_COMMANDS = {
    "fit": "Train a model; its files go into runs/NAME/version_N.",
    "validate": "Compute the exact loss of a checkpoint on the validation split.",
    "test": "Compute the exact loss of a checkpoint on the test split, if its corpus has one.",
    "predict": "Print texts that a checkpoint writes.",
}
OTHER_COMMANDS = {
    "report": ("lit_gpt_scratch.runs.report", "Make one HTML file of runs on disk."),
    "export": ("lit_gpt_scratch.cli.export_command", "Write a checkpoint without pickle."),
    "dashboard": ("lit_gpt_scratch.runs.dashboard", "Save the dashboard into a W&B project."),
}
COMMANDS = TRAINER_COMMANDS | {name: text for name, (_, text) in OTHER_COMMANDS.items()}


def overview() -> str:
    """What the program can do."""
    listed = "\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items())
    return (
        f"usage: {PROGRAM} COMMAND [options]\n\n"
        "Train, compare, sample and take apart character-level language models.\n\n"
        f"{listed}\n\n{PROGRAM} COMMAND --help lists the options of a command."
    )


def find_command(args: Sequence[str] | None = None) -> Callable[[], Any]:
    """Import the command that arguments name.

    Args:
        args: Command and flags; None: those of the process.

    Returns:
        A function that runs it.

    Raises:
        SystemExit: There is no such command.
    """
    args = sys.argv[1:] if args is None else args
    first = args[0] if args else "--help"
    if first in ("--help", "-h"):
        return partial(print, overview())
    if first in OTHER_COMMANDS:
        module, _ = OTHER_COMMANDS[first]
        return partial(import_module(module).main, args[1:])
    if first not in COMMANDS and not first.startswith("-"):
        close = get_close_matches(first, COMMANDS, 1)
        hint = f"did you mean {close[0]}?" if close else f"give one of {', '.join(COMMANDS)}."
        exit_with_error(PROGRAM, f"there is no command {first!r}: {hint}")
    from lit_gpt_scratch.cli import commands

    return partial(commands.main, args)


def main(args: Sequence[str] | None = None) -> Any:
    """Run a command.

    Returns:
        Of fit, validate, test and predict, Lightning's CLI with its `trainer`, `model`,
        `datamodule` and `folder`.

    Raises:
        SystemExit: A user's mistake, after one line on standard error.
    """
    return find_command(args)()


def run(command: Callable[[], Any] = main) -> None:
    """Run a command as a process: Ctrl-C and a closed pipe end it without a traceback."""
    for stream in (sys.stdout, sys.stderr):  # an encoding may lack what a text has
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        command()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:  # whoever reads us has read enough, such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
