"""Compares a network's runs of two texts of equal length, and swaps parts of one into the other.

`trace` shows what differs between the runs. `activation_patching` shows which of the differences
matter for the prediction: it copies the output of one part at one position from the clean run into
the corrupted run (causal tracing: Meng et al. 2022; activation patching: Wang et al. 2022).

Shapes: T characters of a text, S stages, P parts, V alphabet size.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt_scratch.data.windows import eval_batch_size
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.inspection.parts import (
    encode,
    evaluation_mode,
    forward,
    item_at,
    parts_by_name,
    record,
)
from lit_gpt_scratch.training.module import LitCharLM


class Trace(NamedTuple):
    """Differences of two runs. S is 0 if the network has no residual stream of its own."""

    stages: list[str]
    residual: Tensor  # (S, T): norm of the difference, divided by the norm in the clean run
    prediction: Tensor  # (T,): KL divergence in nats of the next-character probabilities


class Patching(NamedTuple):
    """Effects of patching, as shares: 0 leaves the corrupted run's prediction, 1 gives the clean.

    A share can be below 0 or above 1. The prediction is measured as the logit of `answer` minus
    that of `other`.
    """

    parts: list[str]  # names of modules
    single: Tensor  # (P, T): the part is patched at one position
    whole: Tensor  # (P,): the part is patched at all positions
    clean: float  # the logit difference of each run
    corrupted: float


def trace(model: LitCharLM, clean: str, corrupted: str) -> Trace:
    """Measure the difference of two runs at each stage and position, and of the predictions.

    Positions before the first character that differs do not differ at all.
    """
    _require_pair(clean, corrupted)
    # Two separate passes, because rounding may differ between rows of one batch.
    stages, before, expected = forward(model, clean)
    _, after, changed = forward(model, corrupted)
    divergence = F.kl_div(changed, expected, reduction="none", log_target=True).sum(-1)
    return Trace(stages, (after - before).norm(dim=-1) / before.norm(dim=-1), divergence)


def activation_patching(
    model: LitCharLM,
    clean: str,
    corrupted: str,
    answer: str,
    other: str,
    position: int | None = None,
) -> Patching:
    """Copy each part's output from the clean run into the corrupted run, position by position.

    Measured is how far this moves the prediction after `position` (default: the last one) back to
    that of the clean run. Parts are the embedding, and the attention, the MLP (`feed_forward`) and
    the output of each layer. Raises `InputError` also if both runs predict the same.
    """
    _require_pair(clean, corrupted)
    parts = parts_by_name(model)
    position = len(clean) - 1 if position is None else position
    item_at("position", clean, position)
    if len(answer) != 1 or len(other) != 1 or answer == other:
        raise InputError(
            f"answer is {answer!r} and other is {other!r}: give two different characters."
        )
    plus, minus = encode(model, answer + other, must_fit=False)

    def difference(logits: Tensor) -> Tensor:
        return logits[:, position, plus] - logits[:, position, minus]

    source = record(model, encode(model, clean)[None], parts)
    ids = encode(model, corrupted)[None]
    start, end = difference(record(model, ids, {}).logits), difference(source.logits)
    if start == end:
        raise InputError(
            f"in both texts, the logits of {answer!r} and {other!r} differ by {end.item():.3g} at "
            f"position {position}: choose characters, texts or a position where that changes."
        )
    # Text i of a batch is patched at position i; one more text is patched at all positions.
    masks = torch.eye(len(clean), dtype=torch.bool, device=ids.device)
    masks = torch.cat([masks, torch.ones_like(masks[:1])])[:, :, None]
    rows = []
    with evaluation_mode(model) as net:
        for name, module in parts.items():
            effects = []
            for mask in torch.split(masks, eval_batch_size(len(clean), len(model.tokenizer))):
                with module.register_forward_hook(_patch(source.outputs[name], mask)):
                    effects.append(difference(net(ids.expand(len(mask), -1)).float()))
            rows.append((torch.cat(effects) - start) / (end - start))
    shares = torch.stack(rows)
    return Patching([*parts], shares[:, :-1], shares[:, -1], end.item(), start.item())


def _patch(source: Tensor, mask: Tensor) -> Callable[..., Tensor]:
    return lambda _, __, output: torch.where(mask, source, output)


def _require_pair(clean: str, corrupted: str) -> None:
    if len(clean) != len(corrupted) or clean == corrupted:
        raise InputError(
            f"the texts are {clean!r} and {corrupted!r}: give two different texts of equal length."
        )
