"""`predict` without Lightning, whose import takes longer than to generate a text.

It takes the flags of `predict` alone, on a CPU. For every other flag, for a mistake and for a
plugin, `prepare` returns None: the complete command then runs, or explains the mistake.
"""

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from lit_gpt_scratch.checkpoints.network import load_network
from lit_gpt_scratch.cli.predict import PredictSettings, TextWriter, make_batches
from lit_gpt_scratch.data.tokenizer import CharTokenizer
from lit_gpt_scratch.errors import InputError, exit_on_input_error, is_out_of_memory
from lit_gpt_scratch.generation import generate_text
from lit_gpt_scratch.runs.folder import runs_folder
from lit_gpt_scratch.runs.listing import find_checkpoint
from lit_gpt_scratch.shell import PROGRAM


def prepare(args: list[str]) -> Callable[[], None] | None:
    """Return a function that prints the texts, or None if the complete command has to run."""
    if torch.accelerator.is_available():
        return None
    notices, writer = io.StringIO(), TextWriter()
    try:
        with contextlib.redirect_stderr(notices):
            flags = parse(args)
            seed, wanted = flags.pop("seed_everything"), flags.pop("ckpt_path")
            settings = PredictSettings(**flags)
            net, alphabet, context, _ = load_network(find_checkpoint(wanted, runs_folder(None)))
            tokenizer = CharTokenizer(alphabet)
            batches = make_batches(tokenizer, settings, seed, writer)
    except Exception:  # the complete command finds the mistake again, and explains it
        return None

    def write() -> None:
        print(notices.getvalue(), end="", file=sys.stderr)
        with exit_on_input_error(PROGRAM), explain_lack_of_memory():
            for batch in batches:
                generate_text(net, tokenizer, context, batch)
            writer.end()

    return write


def parse(args: list[str]) -> dict[str, Any]:
    """Return the values of flags of `predict`; raise ArgumentError or ValueError for all others."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--ckpt_path", type=plain_path)
    kinds: dict[Any, Callable[[str], Any]] = {
        int: integer,
        int | None: integer,
        float: decimal,
        str: str,
        str | None: plain_file,
    }
    for field in fields(PredictSettings):
        parser.add_argument(f"--{field.name}", type=kinds[field.type])
    parser.add_argument("--seed_everything", type=integer, default=1337)
    flags, others = parser.parse_known_args(args)
    if others:
        raise ValueError(f"{others} are for the complete command")
    return {name: value for name, value in vars(flags).items() if value is not None}


def plain_path(value: str) -> str:
    """Return a path as it is. Raise ValueError for what YAML may read in another way."""
    if not re.fullmatch(r"[\w./\\:~ -]*\w[\w./\\:~ -]*", value) or value.lower() == "null":
        raise ValueError(value)
    return value


def plain_file(value: str) -> str:
    """Return the path of a file that can be read twice; raise ValueError for standard input."""
    if not Path(plain_path(value)).expanduser().is_file():
        raise ValueError(value)
    return value


def integer(value: str) -> int:
    """Return a whole number. Raise ValueError for all other texts, also for a sign."""
    if not re.fullmatch("[0-9]{1,18}", value):
        raise ValueError(value)
    return int(value)


def decimal(value: str) -> float:
    """Return a decimal number. Raise ValueError for all other texts, also for a sign."""
    if not re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,18})?", value):
        raise ValueError(value)
    return float(value)


@contextlib.contextmanager
def explain_lack_of_memory() -> Iterator[None]:
    """Turn an error of PyTorch in this `with` block into an `InputError` that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        from lit_gpt_scratch.cli.messages import explain_failure

        raise InputError(explain_failure(error)) from error
