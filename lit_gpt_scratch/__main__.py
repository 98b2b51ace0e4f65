"""The process of `lit-gpt-scratch`, or `python -m lit_gpt_scratch`."""

import os
import signal
import sys
from io import TextIOWrapper


def run() -> None:
    """Run the command line so that Ctrl-C and a closed pipe end it without a traceback.

    While the process loads and unloads, Ctrl-C ends it at once.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from lit_gpt_scratch.cli import program

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # its encoding may lack characters of a text
            stream.reconfigure(errors="backslashreplace")
    try:
        command = program.find_command(quick=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        command()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    run()
