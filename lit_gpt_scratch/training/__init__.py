"""The Lightning module, optimizers and schedules, and the callbacks that training needs.

Each callback has one job: the training loss, finite checks, resume, checkpoint saving, throughput,
several processes.
"""

from lit_gpt_scratch.training.count_mixture import CountMixture
from lit_gpt_scratch.training.module import LitCharLM
from lit_gpt_scratch.training.muon import Muon
from lit_gpt_scratch.training.optim import AdamW, WarmupCosine, WarmupStableDecay

__all__ = ["AdamW", "CountMixture", "LitCharLM", "Muon", "WarmupCosine", "WarmupStableDecay"]
