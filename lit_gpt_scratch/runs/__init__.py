"""A run on disk: its folder, tables, W&B record, dashboard and report.

This package exports what reads runs without Lightning. The callbacks and loggers of `fit` are in
modules of their own.
"""

from lit_gpt_scratch.runs.folder import find_checkpoint
from lit_gpt_scratch.runs.reading import Run, find_runs, read_run, read_wandb

__all__ = ["Run", "find_checkpoint", "find_runs", "read_run", "read_wandb"]
