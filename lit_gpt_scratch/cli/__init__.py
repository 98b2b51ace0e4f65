"""The commands of `lit-gpt-scratch`: flags and configs in; results or one line of error out."""

from lit_gpt_scratch.cli.program import main

__all__ = ["main"]
