"""The program: `lit-gpt-scratch`, or `python -m lit_gpt_scratch`."""

import signal


def run() -> None:
    """Start the command line; while it is loading, there is nothing that Ctrl-C has to undo."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from lit_gpt_scratch import cli

    signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.run()


if __name__ == "__main__":
    run()
