"""The program: `lit-gpt-scratch`, or `python -m lit_gpt_scratch`."""

import signal


def run() -> None:
    """Start the command line; while it loads and unloads, Ctrl-C has nothing to undo."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from lit_gpt_scratch import cli

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        cli.run()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    run()
