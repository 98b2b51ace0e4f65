"""Reads checkpoints from anywhere without running code in them, and exports them.

A checkpoint is a .ckpt file of `fit`, or a folder of safetensors and JSON written by `export`.
"""

from lit_gpt_scratch.checkpoints.export import write_export
from lit_gpt_scratch.checkpoints.reading import read_checkpoint

__all__ = ["read_checkpoint", "write_export"]
