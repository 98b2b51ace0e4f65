"""Writes texts with a character-level model: stop strings, and pieces of text as they are drawn.

Shapes: B texts, T time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lit_gpt_scratch.data.tokenizer import CharTokenizer
from lit_gpt_scratch.generation.sampling import SamplingSettings, stream

OnText = Callable[[int, str], None]  # receives the number of a text and the next piece of it


@dataclass(frozen=True)
class Prompts:
    """A batch for `predict`: prompts of one length, and how to continue them."""

    ids: Tensor  # (B, T)
    indices: Sequence[int]  # number of each text; its draws depend on the seed and on this number
    settings: SamplingSettings
    stop: str = ""  # a text ends before this string
    on_text: OnText | None = None  # receives each new piece of the batch's first text

    def to(self, device: torch.device, **_: Any) -> "Prompts":
        """Return the same batch with its ids on a device; Lightning calls this."""
        return replace(self, ids=self.ids.to(device))


def default_prompt(tokenizer: CharTokenizer) -> str:
    """Return what an empty prompt stands for: a new line, else the alphabet's first character."""
    return "\n" if "\n" in tokenizer.alphabet else tokenizer.alphabet[0]


def generate_text(
    net: nn.Module,
    tokenizer: CharTokenizer,
    context: int,
    prompt: Tensor,
    settings: SamplingSettings,
    indices: Sequence[int] | None = None,
    stop: str = "",
    on_text: OnText | None = None,
) -> list[str]:
    """Continue prompts, without dropout, and return the texts with their prompts.

    Args:
        net: Maps ids (B, T) to logits (B, T, V); it is in evaluation mode while generating.
        tokenizer: The tokenizer of the network's alphabet.
        context: Longest input of the network.
        prompt: ids (B, T).
        settings: How to sample.
        indices: Number of each text, for its random draws; the default counts from 0.
        stop: A text ends before this string.
        on_text: Receives the number of the first text and each piece of it, the prompt first.
    """
    indices = range(len(prompt)) if indices is None else indices
    stop_ids = tokenizer.encode(stop).to(prompt.device) if stop else None
    drawn, generated = [], ""  # of all texts, and of the first
    if on_text:
        on_text(indices[0], tokenizer.decode(prompt[0].cpu()))
    was_training = net.training
    net.eval()
    try:
        # A compiled network would be compiled again for each length of the cache.
        with torch.compiler.set_stance("force_eager"):
            for ids in stream(net, prompt, context, settings, indices, stop_ids):
                drawn.append(ids)
                if on_text:
                    generated += tokenizer.decode(ids[:1].cpu())
                    # A character is shown len(stop) later, so that the stop string never shows.
                    if stop and generated.endswith(stop):
                        on_text = None
                    elif len(generated) > len(stop):
                        on_text(indices[0], generated[-len(stop) - 1])
    finally:
        net.train(was_training)
    texts = [tokenizer.decode(row) for row in torch.cat([prompt, torch.stack(drawn, 1)], 1).cpu()]
    ends = [text.find(stop, prompt.size(1)) if stop else -1 for text in texts]
    return [text if end < 0 else text[:end] for text, end in zip(texts, ends, strict=True)]
