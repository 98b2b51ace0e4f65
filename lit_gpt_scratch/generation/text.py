"""Writes texts with a character-level model: stop strings, and pieces of text as they are drawn.

Shapes: B texts, T time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lit_gpt_scratch.data.tokenizer import CharTokenizer
from lit_gpt_scratch.generation.sampling import (
    CHECK_EVERY,
    SamplingSettings,
    one_thread_if_few,
    stream,
)
from lit_gpt_scratch.private_api import uncompiled

OnText = Callable[[int, str], None]  # receives the number of a text and the next piece of it
OnEnd = Callable[[Sequence[int], list[str]], None]  # receives the numbers of texts, and the texts


@dataclass(frozen=True)
class Prompts:
    """A batch for `predict`: prompts of one length, and how to continue them."""

    ids: Tensor  # (B, T)
    indices: Sequence[int] | None = None  # number of each text, for its draws; None: 0, 1, ...
    settings: SamplingSettings = field(default_factory=SamplingSettings)
    stop: str = ""  # a text ends before this string
    on_text: OnText | None = None  # receives each new piece of the batch's first text
    on_end: OnEnd | None = None  # receives all texts of the batch when they are complete

    def to(self, device: torch.device, **_: Any) -> "Prompts":
        """Return the same batch with its ids on a device; Lightning calls this."""
        return replace(self, ids=self.ids.to(device))


def default_prompt(tokenizer: CharTokenizer) -> str:
    """Return what an empty prompt stands for: a new line, else the alphabet's first character."""
    return "\n" if "\n" in tokenizer.alphabet else tokenizer.alphabet[0]


def generate_text(
    net: nn.Module, tokenizer: CharTokenizer, context: int, prompts: Prompts
) -> list[str]:
    """Continue prompts, and return the texts with their prompts.

    The network maps ids (B, T) to logits (B, T, V); it is in evaluation mode while generating.
    """
    ids, stop, on_text = prompts.ids, prompts.stop, prompts.on_text
    stop_ids = tokenizer.encode(stop).to(ids.device) if stop else None
    indices = range(len(ids)) if prompts.indices is None else prompts.indices
    drawn, generated = [], ""  # of all texts, and of the first
    check_every = 1 if on_text else CHECK_EVERY  # show none without a meaning
    if on_text:
        on_text(indices[0], tokenizer.decode(ids[0].cpu()))
    was_training = net.training
    net.eval()
    try:
        # A compiled network would be compiled again for each length of the cache.
        with uncompiled(), one_thread_if_few(net, len(ids)):
            characters = stream(
                net, ids, context, prompts.settings, indices, stop_ids, check_every=check_every
            )
            for new in characters:
                drawn.append(new)
                if on_text:
                    generated += tokenizer.decode(new[:1].cpu())
                    # A character is shown len(stop) later, so that the stop string never shows.
                    if stop and generated.endswith(stop):
                        on_text = None
                    elif len(generated) > len(stop):
                        on_text(indices[0], generated[-len(stop) - 1])
    finally:
        net.train(was_training)
    texts = [tokenizer.decode(row) for row in torch.cat([ids, torch.stack(drawn, 1)], 1).cpu()]
    if stop:
        length = ids.size(1)
        texts = [text[:length] + text[length:].split(stop)[0] for text in texts]
    if prompts.on_end:
        prompts.on_end(indices, texts)
    return texts
