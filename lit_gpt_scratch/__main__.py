"""The program: `lit-gpt-scratch`, or `python -m lit_gpt_scratch`."""

import signal


def run() -> None:
    """Start the command line. Ctrl-C ends the process at once while it loads and unloads."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from lit_gpt_scratch.cli import program

    command = program.find_command()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        program.run(command)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    run()
