"""Turns a GPT into GPT-2 of Hugging Face's transformers; for `export --format huggingface`.

GPT is GPT-2 without biases, with an unembedding of its own. So the biases are written as zeros.
"""

import json
from typing import Any

import torch
from torch import Tensor, nn

from lit_gpt_scratch.checkpoints.formats import CONFIG, WEIGHTS, as_safetensors
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models import (
    GPT,
    AttentionLM,
    Bigram,
    Ensemble,
    FusedAttention,
    ModernGPT,
    MultiHeadAttention,
)

SAME_ATTENTION = (MultiHeadAttention, FusedAttention)  # both compute what GPT-2 computes
DIFFERENCES = {  # why a network is not a GPT-2
    Bigram: "is a table",
    AttentionLM: "has no transformer blocks",
    ModernGPT: "has rotary positions, RMSNorm and other parts that GPT-2 does not have",
    Ensemble: "consists of several networks",
}
# Names of a block's modules in transformers, and ours. Matrices of LINEAR are transposed there.
NORMS = {"ln_1": "attention_norm", "ln_2": "feed_forward_norm"}
LINEAR = {
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.output",
    "mlp.c_fc": "feed_forward.hidden",
    "mlp.c_proj": "feed_forward.output",
}


def huggingface_files(
    net: nn.Module, alphabet: str, context: int, facts: dict[str, Any]
) -> dict[str, bytes]:
    """Return the files of a folder that transformers opens, by name.

    Args:
        net: A `GPT` with `MultiHeadAttention` or `FusedAttention`.
        alphabet: Its characters. The tokenizer refuses all others, as ours does.
        context: Its longest input.
        facts: What config.json says besides.

    Raises:
        InputError: transformers has no such network, or its tokenizers cannot store a character.
    """
    gpt, heads = require_gpt2(net)
    surrogates = [c for c in alphabet if "\ud800" <= c <= "\udfff"]
    if surrogates:
        raise InputError(
            f"the alphabet has {surrogates[0]!r}, half of a UTF-16 pair, which tokenizers of "
            "Hugging Face cannot store: train on a text without it, or use --format onnx."
        )
    width = gpt.embed.character.embedding_dim
    norm: Any = gpt.unembed[0]
    config = {
        **facts,
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": len(alphabet),
        "n_positions": context,
        "n_embd": width,
        "n_layer": len(gpt.blocks),
        "n_head": heads,
        "n_inner": 4 * width,
        "activation_function": "gelu",  # the exact one; GPT-2's own approximates it
        "layer_norm_epsilon": norm.eps,
        "tie_word_embeddings": False,
        **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0),
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),  # null: there are none
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    written = {
        CONFIG: config,
        "tokenizer.json": tokenizer(alphabet),
        "tokenizer_config.json": tokenizer_config,
    }
    files = {name: json.dumps(value, indent=2).encode() for name, value in written.items()}
    return {WEIGHTS: as_safetensors(gpt2_weights(gpt), {"format": "pt"}), **files}


def require_gpt2(net: nn.Module) -> tuple[GPT, int]:
    """Return a network that GPT-2 can represent, with its number of heads; refuse all others."""
    name = type(net).__name__
    attentions: list[Any] = [block.attention for block in net.blocks] if type(net) is GPT else []
    others = [type(a).__name__ for a in attentions if type(a) not in SAME_ATTENTION]
    if type(net) is GPT and not others:
        return net, attentions[0].heads
    what = f"has the attention {others[0]}" if others else DIFFERENCES.get(type(net))
    raise InputError(
        f"--format huggingface writes a GPT-2, and {name} {what or 'is another class'}. It can "
        "write GPT with MultiHeadAttention or FusedAttention; --format onnx can write every "
        "network."
    )


def gpt2_weights(gpt: GPT) -> dict[str, Tensor]:
    """Return the weights by their names in GPT2LMHeadModel, with zero biases."""
    ours = gpt.state_dict()
    weights = {
        "transformer.wte.weight": ours["embed.character.weight"],
        "transformer.wpe.weight": ours["embed.position.weight"],
        "transformer.ln_f.weight": ours["unembed.0.weight"],
        "transformer.ln_f.bias": torch.zeros_like(ours["unembed.0.weight"]),
        "lm_head.weight": ours["unembed.1.weight"],
    }
    for i in range(len(gpt.blocks)):
        for name, our_name in (NORMS | LINEAR).items():
            weight = ours[f"blocks.{i}.{our_name}.weight"]
            weights[f"transformer.h.{i}.{name}.weight"] = weight.t() if name in LINEAR else weight
            weights[f"transformer.h.{i}.{name}.bias"] = weight.new_zeros(len(weight))
    return weights


def tokenizer(alphabet: str) -> dict[str, Any]:
    """Return a tokenizer in the format of the library tokenizers: each character is a token.

    There is no token for unknown characters, so that encoding one is an error.
    """
    every_character = {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated"}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {**every_character, "invert": False},
        "post_processor": None,
        "decoder": {"type": "Fuse"},  # joins tokens without spaces
        "model": {
            "type": "WordLevel",
            "vocab": {character: i for i, character in enumerate(alphabet)},
            "unk_token": "unknown character",  # must not be a character
        },
    }
