"""Ensembles: networks that train separately and predict together; shapes as in gpt.py."""

import math

import torch
from torch import Tensor, nn

from lit_gpt_scratch.errors import InputError, require_positive
from lit_gpt_scratch.models.gpt import GPT, NetFactory
from lit_gpt_scratch.models.kv_cache import KVCache


class Ensemble(nn.Module):
    """Networks that train on separate texts and average their probabilities.

    In training, only member i modulo `size` reads text i of a batch. In evaluation, every member
    reads every text, and the probabilities are averaged (Lakshminarayanan et al. 2017). Networks
    that overfit a small corpus make different errors, so that the average is better than the best
    member (Kim et al. 2025, "Pre-training under infinite compute", arXiv 2509.14786).

    Args:
        alphabet_size: Number of characters.
        context: Longest input.
        net: Builds a member.
        size: Number of members.

    Raises `InputError` for a size under 1, and for a training batch of fewer texts than members.
    """

    def __init__(
        self, alphabet_size: int, context: int, net: NetFactory = GPT, size: int = 4
    ) -> None:
        super().__init__()
        require_positive(size=size)
        self.members = nn.ModuleList(
            net(alphabet_size=alphabet_size, context=context) for _ in range(size)
        )

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return logits (B, T, V) of ids (B, T), which continue the text in the cache, if any."""
        return self.train_logits(ids) if self.training else self.ensemble_logits(ids, cache)

    def train_logits(self, ids: Tensor) -> Tensor:
        """Return logits (B, T, V); those of text i come from member i modulo `size`."""
        size = len(self.members)
        if len(ids) < size:
            raise InputError(
                f"{size} members cannot share a batch of {len(ids)}: raise --data.batch_size."
            )
        shares = [member(ids[i::size]).unbind() for i, member in enumerate(self.members)]
        return torch.stack([shares[i % size][i // size] for i in range(len(ids))])

    def ensemble_logits(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return the logarithm (B, T, V) of the mean of all members' probabilities."""
        start = cache.length if cache else 0
        member_log_probs = []
        for member in self.members:
            if cache:
                cache.length = start  # the previous member increased it
            logits = member(ids, cache) if cache else member(ids)  # a member need not know caches
            member_log_probs.append(logits.float().log_softmax(-1))
        return torch.stack(member_log_probs).logsumexp(0) - math.log(len(member_log_probs))
