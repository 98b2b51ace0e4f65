"""Looks into a trained model: attention, surprise, logit lens, ablation, and their plots.

Works on every rung from outside, through hooks; `plots` draws what the functions return.
"""

from lit_gpt_scratch.inspection.explore import (
    LayerAttention,
    Lens,
    Trace,
    attention,
    embeddings,
    head_costs,
    layer_costs,
    logit_lens,
    member,
    next_characters,
    position_costs,
    similarity,
    surprise,
    trace,
    visible,
    without_head,
    without_layer,
    without_position,
)
from lit_gpt_scratch.inspection.loading import load

__all__ = [
    "LayerAttention",
    "Lens",
    "Trace",
    "attention",
    "embeddings",
    "head_costs",
    "layer_costs",
    "load",
    "logit_lens",
    "member",
    "next_characters",
    "position_costs",
    "similarity",
    "surprise",
    "trace",
    "visible",
    "without_head",
    "without_layer",
    "without_position",
]
