"""Read checkpoints from unknown sources without running code from them, and export them."""

from lit_gpt_scratch.checkpoints.export import write_export
from lit_gpt_scratch.checkpoints.reading import read_checkpoint

__all__ = ["read_checkpoint", "write_export"]
