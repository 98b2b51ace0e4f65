"""The bigram, AttentionLM and the GPT, compared with PyTorch's layers, and their initialisation."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import random_ids, run_in_pieces, with_random_weights
from torch import nn

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models.attention import FusedAttention, MeanAttention, MultiHeadAttention
from lit_gpt_scratch.models.gpt import (
    GPT,
    AttentionLM,
    Bigram,
    Block,
    Embedding,
    count_parameters,
)

WIDTH, HEADS = 16, 4


def torch_layer(block: Block) -> nn.TransformerEncoderLayer:
    """Return PyTorch's layer with the weights of a block."""
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
    """Outputs and gradients, pre-norm, with a causal mask and the same weights."""
    block = with_random_weights(Block(WIDTH, partial(attention, heads=HEADS))).train()
    layer = torch_layer(block)
    x = torch.randn(3, 7, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
    copy = x.detach().clone().requires_grad_()
    mask = nn.Transformer.generate_square_subsequent_mask(7)
    actual, expected = block(x), layer(copy, src_mask=mask, is_causal=True)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    actual.square().mean().backward()
    expected.square().mean().backward()
    torch.testing.assert_close(x.grad, copy.grad, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(
        block.attention.qkv.weight.grad, layer.self_attn.in_proj_weight.grad, atol=1e-4, rtol=1e-3
    )


@torch.no_grad()
def test_a_gpt_equals_embedding_then_blocks_then_unembedding() -> None:
    """Compared with PyTorch's layers; a logit lens can therefore stop after any block."""
    net = with_random_weights(GPT(11, 7, layers=3, width=WIDTH))
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
def test_logits_in_pieces_with_a_cache_equal_logits_at_once(
    attention: type[MultiHeadAttention], sizes: list[int]
) -> None:
    """The network itself increases the length of the cache and uses it for its positions."""
    net = with_random_weights(GPT(11, 24, layers=2, width=WIDTH, attention=attention))
    ids = random_ids(11, 2, sum(sizes))
    torch.testing.assert_close(run_in_pieces(net, ids, sizes), net(ids), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_embedding_is_the_sum_of_character_and_position() -> None:
    embed = with_random_weights(Embedding(11, 7, WIDTH))
    ids = random_ids(11, 2, 3)
    rows = [embed.character.weight[ids[:, t]] + embed.position.weight[4 + t] for t in range(3)]
    assert torch.equal(embed(ids, 4), torch.stack(rows, dim=1))
    assert not torch.equal(embed(ids), embed(ids, 4))


@torch.no_grad()
def test_a_bigram_depends_on_one_character_only() -> None:
    net = Bigram(11, 7)
    ids = random_ids(11, 2, 7)
    assert torch.equal(net(ids), net.table.weight[ids])


@pytest.mark.parametrize("layers", [1, 4])
def test_initial_weights_have_the_documented_deviation(layers: int) -> None:
    """0.02, and 0.02 / sqrt(2 * layers) for `output`; gains of norms are 1."""
    torch.manual_seed(0)
    for name, weight in GPT(65, 64, layers=layers).named_parameters():
        if weight.dim() < 2:
            assert torch.equal(weight, torch.ones_like(weight)), name
            continue
        std = 0.02 / math.sqrt(2 * layers) if name.endswith("output.weight") else 0.02
        # Tolerances: four standard errors of the deviation and of the mean.
        assert weight.std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * weight.numel()))
        assert abs(weight.mean().item()) < 4 * std / math.sqrt(weight.numel()), name


def test_the_variance_of_the_residual_stream_does_not_grow_with_depth() -> None:
    """The reason for the smaller deviation of `output`."""
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


def test_the_default_gpt_has_812_416_parameters() -> None:
    """On Tiny Shakespeare's 65 characters, at the default context."""
    assert count_parameters(GPT(65, 64)) == 812_416


def test_count_parameters_ignores_frozen_parameters() -> None:
    net = Bigram(10, 8)
    assert count_parameters(net) == 100
    assert count_parameters(net.requires_grad_(False)) == 0


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    net = GPT(11, 7, layers=1, width=WIDTH, dropout=0.5)
    ids = random_ids(11, 2, 7)
    assert not torch.equal(net(ids), net(ids))
    net.eval()
    assert torch.equal(net(ids), net(ids))


@torch.no_grad()
def test_dropout_applies_to_the_embedding_and_to_what_each_part_adds() -> None:
    """With a probability near 1 almost all of it is zero."""
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
    ],
)
def test_networks_refuse_invalid_arguments_by_name(build: partial, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()
