"""The program `lit-gpt-scratch`: flags and configs in, results or one line of error out.

It imports what the command needs and no more: Lightning alone takes seconds.
"""

from lit_gpt_scratch.cli.program import main, run

__all__ = ["main", "run"]
