"""The networks against PyTorch's own layers, and their documented beginnings."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import in_pieces, random_ids, stirred
from torch import nn
from torch.nn import functional as F

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.generation.sampling import takes_cache
from lit_gpt_scratch.models.attention import FusedAttention, MeanAttention, MultiHeadAttention
from lit_gpt_scratch.models.gpt import (
    GPT,
    AttentionLM,
    Bigram,
    Block,
    Embedding,
    Ensemble,
    count_parameters,
)

WIDTH, HEADS = 16, 4


def torch_layer(block: Block) -> nn.TransformerEncoderLayer:
    """PyTorch's layer with a block's weights."""
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True,
        norm_first=True, bias=False,
    )  # fmt: skip
    names = {
        "self_attn.in_proj_weight": block.attention.qkv.weight,
        "self_attn.out_proj.weight": block.attention.output.weight,
        "linear1.weight": block.feed_forward.hidden.weight,
        "linear2.weight": block.feed_forward.output.weight,
        "norm1.weight": block.attention_norm.weight,
        "norm2.weight": block.feed_forward_norm.weight,
    }
    layer.load_state_dict(names)
    return layer


@pytest.mark.parametrize("attention", [MultiHeadAttention, FusedAttention])
def test_a_block_equals_pytorchs_encoder_layer(attention: type[MultiHeadAttention]) -> None:
    """Pre-norm, with a causal mask and the same weights: outputs and gradients."""
    block = stirred(Block(WIDTH, partial(attention, heads=HEADS))).train()
    layer = torch_layer(block)
    x = torch.randn(3, 7, WIDTH, generator=torch.Generator().manual_seed(0))
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    mask = nn.Transformer.generate_square_subsequent_mask(7)
    one, other = block(ours), layer(theirs, src_mask=mask, is_causal=True)
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    one.square().mean().backward()
    other.square().mean().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(
        block.attention.qkv.weight.grad, layer.self_attn.in_proj_weight.grad, atol=1e-4, rtol=1e-3
    )


@torch.no_grad()
def test_a_gpt_is_embedding_blocks_and_unembedding_in_a_row() -> None:
    """Against PyTorch's layers, so that a logit lens may stop after any block."""
    net = stirred(GPT(11, 7, layers=3, width=WIDTH))
    ids = random_ids(11, 2, 7)
    characters, positions = net.embed.character.weight, net.embed.position.weight
    x = characters[ids] + positions
    mask = nn.Transformer.generate_square_subsequent_mask(7)
    for block in net.blocks:
        x = torch_layer(block)(x, src_mask=mask, is_causal=True)
    norm, matrix = net.unembed[0].weight, net.unembed[1].weight
    logits = nn.functional.layer_norm(x, (WIDTH,), norm) @ matrix.T
    torch.testing.assert_close(net(ids), logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("attention", [MultiHeadAttention, FusedAttention])
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_a_text_read_in_pieces_has_the_logits_of_the_whole(
    attention: type[MultiHeadAttention], sizes: list[int]
) -> None:
    """With a cache, which the network itself moves on; what has positions knows where it is."""
    net = stirred(GPT(11, 24, layers=2, width=WIDTH, attention=attention))
    ids = random_ids(11, 2, sum(sizes))
    torch.testing.assert_close(in_pieces(net, ids, sizes), net(ids), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_embedding_is_the_sum_of_a_character_and_of_a_position() -> None:
    embed = stirred(Embedding(11, 7, WIDTH))
    ids = random_ids(11, 2, 3)
    rows = [embed.character.weight[ids[:, t]] + embed.position.weight[4 + t] for t in range(3)]
    assert torch.equal(embed(ids, 4), torch.stack(rows, dim=1))
    assert not torch.equal(embed(ids), embed(ids, 4))


@torch.no_grad()
def test_a_bigram_sees_one_character() -> None:
    net = Bigram(11, 7)
    ids = random_ids(11, 2, 7)
    assert torch.equal(net(ids), net.table.weight[ids])


@pytest.mark.parametrize("layers", [1, 4])
def test_weights_start_as_init_weights_documents(layers: int) -> None:
    """Deviation 0.02; under `output`, 0.02 / sqrt(2 * layers); norms at one."""
    torch.manual_seed(0)
    for name, weight in GPT(65, 64, layers=layers).named_parameters():
        if weight.dim() < 2:
            assert torch.equal(weight, torch.ones_like(weight)), name
            continue
        std = 0.02 / math.sqrt(2 * layers) if name.endswith("output.weight") else 0.02
        # Four standard errors of a deviation, and of a mean.
        assert weight.std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * weight.numel()))
        assert abs(weight.mean().item()) < 4 * std / math.sqrt(weight.numel()), name


def test_a_residual_streams_variance_does_not_grow_with_depth() -> None:
    """What the narrower `output` is for."""
    torch.manual_seed(0)
    ids = random_ids(65, 4, 64)
    shallow, deep = (GPT(65, 64, layers=layers, width=64) for layers in (1, 12))
    deviations = []
    with torch.no_grad():
        for net in (shallow, deep):
            x = net.embed(ids)
            for block in net.blocks:
                x = block(x)
            deviations.append(x.std().item())
    assert deviations[1] < 1.2 * deviations[0]


# Ensembles

MEMBER = partial(GPT, layers=1, width=WIDTH)


@torch.no_grad()
@given(st.integers(1, 4), st.integers(1, 5))
def test_an_ensembles_probabilities_are_the_mean_of_its_members(size: int, batch: int) -> None:
    """Though each is sure of something else; and they sum to 1."""
    net = stirred(Ensemble(11, 7, MEMBER, size))
    ids = random_ids(11, batch, 7)
    mean = sum(member(ids).softmax(-1) for member in net.members) / size
    torch.testing.assert_close(net(ids).exp(), mean)
    torch.testing.assert_close(net(ids).exp().sum(-1), torch.ones(batch, 7))


def test_each_member_learns_from_its_own_texts_alone() -> None:
    """As it would by itself, but for the share that it has of the loss."""
    net = stirred(Ensemble(11, 7, MEMBER, size=3)).train()
    ids, targets = random_ids(11, 7, 7), random_ids(11, 7, 7, seed=1)
    logits = net(ids)
    F.cross_entropy(logits.mT, targets, reduction="sum").backward()
    together = [[p.grad.clone() for p in member.parameters()] for member in net.members]
    for i, member in enumerate(net.members):
        member.zero_grad()
        alone = member(ids[i::3])
        assert torch.equal(logits[i::3], alone)
        F.cross_entropy(alone.mT, targets[i::3], reduction="sum").backward()
        for p, grad in zip(member.parameters(), together[i], strict=True):
            assert grad.any()
            assert torch.equal(p.grad, grad)


def test_members_start_apart() -> None:
    first, second = Ensemble(11, 7, MEMBER, size=2).members
    assert not torch.equal(first.embed.character.weight, second.embed.character.weight)


def test_members_that_would_have_nothing_to_learn_from_are_refused() -> None:
    with pytest.raises(InputError, match="4 members cannot share a batch of 3"):
        Ensemble(11, 7, MEMBER, size=4).train()(random_ids(11, 3, 7))


def test_an_ensemble_takes_a_cache_where_its_members_do() -> None:
    assert takes_cache(Ensemble(11, 7, MEMBER))
    assert not takes_cache(Ensemble(11, 7, Bigram))
    assert not takes_cache(Ensemble(11, 7, partial(AttentionLM, attention=MultiHeadAttention)))


def test_the_default_gpt_has_812_416_parameters() -> None:
    """On Tiny Shakespeare's 65 characters, at the default context."""
    assert count_parameters(GPT(65, 64)) == 812_416


def test_frozen_parameters_are_not_counted() -> None:
    net = Bigram(10, 8)
    assert count_parameters(net) == 100
    assert count_parameters(net.requires_grad_(False)) == 0


def test_dropout_acts_in_training_alone() -> None:
    torch.manual_seed(0)
    net = GPT(11, 7, layers=1, width=WIDTH, dropout=0.5)
    ids = random_ids(11, 2, 7)
    assert not torch.equal(net(ids), net(ids))
    net.eval()
    assert torch.equal(net(ids), net(ids))


@torch.no_grad()
def test_dropout_falls_on_the_embedding_and_on_what_each_part_adds() -> None:
    """At a probability near 1 almost nothing is left of either."""
    torch.manual_seed(0)
    net = GPT(11, 7, layers=1, width=WIDTH, dropout=0.99)
    ids = random_ids(11, 64, 7)
    assert (net.embed(ids) == 0).float().mean() > 0.95
    x = torch.randn(64, 7, WIDTH)
    assert (net.blocks[0](x) == x).float().mean() > 0.95


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GPT(11, 0), "context is 0"),
        (lambda: GPT(11, 7, layers=0), "layers is 0"),
        (lambda: GPT(11, 7, layers=-1), "layers is -1"),
        (lambda: GPT(11, 7, width=0), "width is 0"),
        (lambda: GPT(11, 7, width=6), "heads must divide the width"),
        (lambda: GPT(11, 7, dropout=1.0), "dropout is 1.0"),
        (lambda: GPT(11, 7, dropout=-0.5), "dropout is -0.5"),
        (lambda: AttentionLM(11, 7, width=0), "width is 0"),
        (lambda: AttentionLM(11, -7, MeanAttention), "context is -7"),
        (lambda: Embedding(11, 7, -1), "width is -1"),
        (lambda: Bigram(11, 0), "context is 0"),
        (lambda: Ensemble(11, 7, size=0), "size is 0"),
        (lambda: Ensemble(11, 7, Bigram, size=-1), "size is -1"),
    ],
)
def test_sizes_that_cannot_be_are_refused_by_name(build: partial, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()
