"""A run on disk: its folder, tables, W&B record, dashboard and report.

The names below read runs and do not import Lightning; the modules for `fit` do.
"""

from lit_gpt_scratch.runs.listing import find_checkpoint
from lit_gpt_scratch.runs.reading import Run, find_runs, read_run, read_wandb

__all__ = ["Run", "find_checkpoint", "find_runs", "read_run", "read_wandb"]
