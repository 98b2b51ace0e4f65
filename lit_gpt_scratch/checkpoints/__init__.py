"""Read checkpoints from unknown sources without running code from them, and export them."""

from lit_gpt_scratch.checkpoints.formats import read_checkpoint, write_export

__all__ = ["read_checkpoint", "write_export"]
