"""The process of `lit-gpt-scratch`, or `python -m lit_gpt_scratch`."""

import os
import signal
import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import Any


def run() -> None:
    """Run the command line. While it loads and unloads, Ctrl-C ends the process at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from lit_gpt_scratch.cli import program

    command = program.find_command()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run_command(command)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def run_command(command: Callable[[], Any]) -> None:
    """Run a command so that Ctrl-C and a closed pipe end the process without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # its encoding may lack characters of a text
            stream.reconfigure(errors="backslashreplace")
    try:
        command()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


if __name__ == "__main__":
    run()
