"""The Lightning module, optimizers and schedules, and the callbacks that training needs.

Checkpoint saving, exact resume, throughput and several processes are callbacks, one file each.
"""

from lit_gpt_scratch.training.module import LitCharLM
from lit_gpt_scratch.training.optim import AdamW, Muon, WarmupCosine, WarmupStableDecay

__all__ = ["AdamW", "LitCharLM", "Muon", "WarmupCosine", "WarmupStableDecay"]
