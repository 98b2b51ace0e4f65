"""A run on disk: its folder, tables, W&B record, dashboard and report.

What is exported here reads runs without Lightning; callbacks and loggers are in modules of their
own.
"""

from lit_gpt_scratch.runs.reading import Run, find_runs, read_run, read_wandb

__all__ = ["Run", "find_runs", "read_run", "read_wandb"]
