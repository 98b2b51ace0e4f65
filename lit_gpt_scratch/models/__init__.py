"""The networks: attention, and the ladder from a bigram to an ensemble of GPTs.

Each maps ids (B, T) to logits (B, T, V). Nothing here knows of training or of Lightning.
"""

from lit_gpt_scratch.models.attention import (
    AttentionFactory,
    FusedAttention,
    KVCache,
    MeanAttention,
    MultiHeadAttention,
    RotaryAttention,
    SingleHeadAttention,
    causal_softmax,
    fused_attention,
)
from lit_gpt_scratch.models.gpt import (
    GPT,
    AttentionLM,
    Bigram,
    Block,
    Ensemble,
    NetFactory,
    count_parameters,
)
from lit_gpt_scratch.models.modern import ModernBlock, ModernGPT

__all__ = [
    "GPT",
    "AttentionFactory",
    "AttentionLM",
    "Bigram",
    "Block",
    "Ensemble",
    "FusedAttention",
    "KVCache",
    "MeanAttention",
    "ModernBlock",
    "ModernGPT",
    "MultiHeadAttention",
    "NetFactory",
    "RotaryAttention",
    "SingleHeadAttention",
    "causal_softmax",
    "count_parameters",
    "fused_attention",
]
