"""Looks into a trained model: attention, losses, logit lens, ablation; for notebooks and training.

The functions work on every network through hooks from outside. `plots` draws their results.
"""

from lit_gpt_scratch.inspection.drawing import draw_heads, visible
from lit_gpt_scratch.inspection.hooks import (
    LayerAttention,
    Lens,
    Trace,
    ablate_head,
    ablate_layer,
    ablate_position,
    attention,
    embeddings,
    head_costs,
    layer_costs,
    logit_lens,
    member,
    next_characters,
    position_costs,
    similarity,
    token_losses,
    trace,
)
from lit_gpt_scratch.inspection.loading import load

__all__ = [
    "LayerAttention", "Lens", "Trace", "ablate_head", "ablate_layer", "ablate_position",
    "attention", "draw_heads", "embeddings", "head_costs", "layer_costs", "load", "logit_lens",
    "member", "next_characters", "position_costs", "similarity", "token_losses", "trace", "visible",
]  # fmt: skip
