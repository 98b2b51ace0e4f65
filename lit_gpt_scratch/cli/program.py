"""The list of commands, and the function that starts one of them."""

import contextlib
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lit_gpt_scratch.errors import exit_with_error
from lit_gpt_scratch.shell import PROGRAM, shell_name

TRAINER_COMMANDS = {
    "fit": "Train a model; its files go into runs/NAME/version_N.",
    "validate": "Compute the exact loss of a checkpoint on the validation split.",
    "test": "Compute the exact loss of a checkpoint on the test split, if its corpus has one.",
    "predict": "Generate text with a checkpoint, and print it.",
}
OTHER_COMMANDS = {  # each with the module whose `main` runs it
    "check": ("lit_gpt_scratch.cli.check", "Say which laws a new attention or network obeys."),
    "compare": (
        "lit_gpt_scratch.cli.compare",
        "Train configs with several seeds; say which is better.",
    ),
    "runs": ("lit_gpt_scratch.runs.listing", "List the runs on disk."),
    "report": ("lit_gpt_scratch.runs.report", "Write one HTML file that compares runs on disk."),
    "playground": (
        "lit_gpt_scratch.cli.playground_command",
        "Write models into one HTML file, in which they run.",
    ),
    "export": (
        "lit_gpt_scratch.cli.export_command",
        "Write a checkpoint as safetensors, as ONNX, or for Hugging Face.",
    ),
    "dashboard": ("lit_gpt_scratch.runs.dashboard", "Save the dashboard into a W&B project."),
}
COMMANDS = TRAINER_COMMANDS | {name: text for name, (_, text) in OTHER_COMMANDS.items()}


def own_configs() -> dict[str, Path]:
    """Return the configs that come with the program, by name."""
    package = Path(__file__).parents[1]
    inside = package / "configs"  # in a wheel; in a clone they are beside the package
    folder = inside if inside.is_dir() else package.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def overview() -> str:
    """Return the help text that lists all commands and says how to begin."""
    listed = "\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items())
    program = shell_name()
    configs = textwrap.fill(f"Configs: {', '.join(own_configs())}.", 100)
    return (
        f"usage: {PROGRAM} COMMAND [options]\n\n"
        "Train, compare, sample and inspect character-level language models.\n\n"
        f"{listed}\n\n"
        "To begin: train the default model, in a minute or two on two cores, and generate text.\n"
        "Then train another config, and compare both runs in report.html.\n\n"
        f"  {program} fit\n"
        f"  {program} predict --ckpt_path best --prompt ROMEO:\n"
        f"  {program} fit --config multi_head\n"
        f"  {program} report\n\n"
        f"{configs}\n\n"
        f"{PROGRAM} COMMAND --help lists the options of a command. --version prints the version."
    )


def find_command(args: Any = None, quick: bool = False) -> Callable[[], Any]:
    """Return the function that runs the command in `args` (default: sys.argv).

    Its module is imported only now, so that commands without Lightning start at once. With `quick`,
    most calls of `predict` do without Lightning, too. They return no CLI.
    """
    args = sys.argv[1:] if args is None else args
    if not isinstance(args, Sequence):
        return find_command_of_mapping(args)
    args = [str(arg) for arg in args]
    if "--version" in args[:2]:
        return partial(print, f"{PROGRAM} {version('lit_gpt_scratch')}")
    first = args[0] if args else "--help"
    if not args or (first.startswith("-") and ("--help" in args or "-h" in args)):
        return partial(print, overview())
    is_help = any(arg == "-h" or arg.startswith("--help") for arg in args)
    if first in OTHER_COMMANDS:
        module, _ = OTHER_COMMANDS[first]
        is_slow = first in ("compare", "check", "export", "playground") and not is_help
        with loading_notice(first) if is_slow else contextlib.nullcontext():
            return partial(import_module(module).main, args[1:])
    if first not in TRAINER_COMMANDS:
        close = get_close_matches(first, COMMANDS, 1)
        hint = f"did you mean {close[0]}?" if close else f"give one of {', '.join(COMMANDS)}."
        exit_with_error(PROGRAM, f"there is no command {first!r}: {hint}")
    with contextlib.nullcontext() if is_help else loading_notice(first):
        if quick and first == "predict" and not is_help:
            from lit_gpt_scratch.cli import quick_predict

            if run := quick_predict.prepare(args[1:]):
                return run
        from lit_gpt_scratch.cli import commands

    return partial(commands.main, first, args[1:])


@contextlib.contextmanager
def loading_notice(command: str) -> Iterator[None]:
    """Say on a terminal that the libraries, which take seconds, load; erase the notice at the end.

    Standard error alone has it, and only of the process that the user has started.
    """
    notice = f"{PROGRAM} {command}: loading PyTorch and Lightning ..."
    is_shown = sys.stderr.isatty() and "LOCAL_RANK" not in os.environ
    if is_shown:
        print(notice, end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if is_shown:
            print(f"\r{' ' * len(notice)}\r", end="", file=sys.stderr, flush=True)


def find_command_of_mapping(args: Any) -> Callable[[], Any]:
    """Return the function for {"fit": {"trainer": {...}}}, a dict or a Namespace."""
    values = args if isinstance(args, dict) else vars(args)
    command = values.get("subcommand") or next(iter(values), None)
    if command not in TRAINER_COMMANDS or command not in values:
        allowed = ", ".join(TRAINER_COMMANDS)
        exit_with_error(
            PROGRAM,
            f"the arguments are a {type(args).__name__} with the key "
            f"{command!r}: the key must be one of {allowed}, as in {{'fit': {{...}}}}.",
        )
    from lit_gpt_scratch.cli import commands

    return partial(commands.main, command, values[command])


def main(args: Any = None) -> Any:
    """Run a command. fit, validate, test and predict return their CLI (see `commands.main`).

    Args:
        args: A list as on the command line, or {"fit": {...}} as a dict or a Namespace, as
            LightningCLI takes it. The default is the command line.

    A user's mistake ends in SystemExit, after one line on standard error.
    """
    return find_command(args)()
