"""From a network to text: temperature, filters, and one character after the other.

Works on any network of `models`, with a key-value cache where the network takes one.
"""

from lit_gpt_scratch.generation.sampling import (
    SamplingSettings,
    generate,
    next_distribution,
    stream,
)
from lit_gpt_scratch.generation.text import Prompts, default_prompt, generate_text

__all__ = [
    "Prompts", "SamplingSettings", "default_prompt", "generate", "generate_text",
    "next_distribution", "stream",
]  # fmt: skip
