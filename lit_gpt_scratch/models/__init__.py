"""Networks: attention mechanisms, and language models from a bigram to an ensemble of GPTs.

Every network maps ids (B, T) to logits (B, T, V). This package knows nothing of training.
"""

from lit_gpt_scratch.models.attention import (
    AttentionFactory,
    FusedAttention,
    MeanAttention,
    MultiHeadAttention,
    SingleHeadAttention,
    causal_softmax,
    fused_attention,
)
from lit_gpt_scratch.models.ensemble import Ensemble
from lit_gpt_scratch.models.gpt import GPT, AttentionLM, Bigram, Block, NetFactory, count_parameters
from lit_gpt_scratch.models.kv_cache import KVCache
from lit_gpt_scratch.models.modern import ModernBlock, ModernGPT, RotaryAttention

__all__ = [
    "GPT", "AttentionFactory", "AttentionLM", "Bigram", "Block", "Ensemble", "FusedAttention",
    "KVCache", "MeanAttention", "ModernBlock", "ModernGPT", "MultiHeadAttention", "NetFactory",
    "RotaryAttention", "SingleHeadAttention", "causal_softmax", "count_parameters",
    "fused_attention",
]  # fmt: skip
