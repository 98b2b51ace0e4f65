"""Looks into a trained model: attention, losses, logit lens, ablation, patching, attribution.

For notebooks and training. The functions work on every network through hooks from outside. `plots`
draws their results.
"""

from lit_gpt_scratch.inspection.ablation import (
    ablate_head,
    ablate_layer,
    ablate_position,
    head_costs,
    layer_costs,
    position_costs,
)
from lit_gpt_scratch.inspection.attribution import Attribution, logit_attribution
from lit_gpt_scratch.inspection.drawing import draw_heads, visible
from lit_gpt_scratch.inspection.embeddings import (
    Merge,
    closest_pairs,
    clusters,
    embeddings,
    similarity,
    unembeddings,
)
from lit_gpt_scratch.inspection.hooks import (
    LayerAttention,
    Lens,
    attention,
    logit_lens,
    member,
    next_characters,
    token_losses,
)
from lit_gpt_scratch.inspection.loading import load
from lit_gpt_scratch.inspection.patching import Patching, Trace, activation_patching, trace
from lit_gpt_scratch.inspection.playground import Playground, show

__all__ = [
    "Attribution", "LayerAttention", "Lens", "Merge", "Patching", "Playground", "Trace",
    "ablate_head", "ablate_layer", "ablate_position", "activation_patching", "attention",
    "closest_pairs", "clusters", "draw_heads", "embeddings", "head_costs", "layer_costs", "load",
    "logit_attribution", "logit_lens", "member", "next_characters", "position_costs", "show",
    "similarity", "token_losses", "trace", "unembeddings", "visible",
]  # fmt: skip
