"""Rotary positions and rotary attention, compared with references that are written differently.

Shapes: B batch, T time, C channels, H heads, D head size.
"""

import cmath
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import reference_weights, run_in_pieces
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models.modern import RotaryAttention, apply_rope, rotation_table

WIDTH, HEADS = 16, 2


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 40), st.integers(0, 300), st.sampled_from([2, 4, 10]))
def test_rope_keeps_the_length_of_every_vector(length: int, start: int, size: int) -> None:
    x = normal(2, length, 3, size, seed=start)
    torch.testing.assert_close(apply_rope(x, start).norm(dim=-1), x.norm(dim=-1))


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300), st.sampled_from([2, 4, 10]))
def test_a_dot_product_after_rope_depends_on_the_distance_only(
    i: int, j: int, offset: int, size: int
) -> None:
    """Within the fp32 rounding of angles of up to 600."""
    q, k = (F.normalize(normal(1, 1, 1, size, seed=seed), dim=-1) for seed in (1, 2))
    near, far = ((apply_rope(q, i + by) * apply_rope(k, j + by)).sum().item() for by in (0, offset))
    assert near == pytest.approx(far, abs=3e-4)


def rotated(vector: Tensor, position: int) -> Tensor:
    """Rotate one vector (D,), one pair of channels after the other."""
    pairs = []
    for i in range(0, len(vector), 2):
        angle = position * 10_000 ** (-i / len(vector))
        pair = complex(vector[i], vector[i + 1]) * cmath.exp(1j * angle)
        pairs += [pair.real, pair.imag]
    return torch.tensor(pairs, dtype=vector.dtype)


@given(st.integers(1, 9), st.integers(0, 60), st.sampled_from([2, 4, 10]))
def test_rope_rotates_each_pair_of_channels_at_its_own_frequency(
    length: int, start: int, size: int
) -> None:
    x = normal(1, length, 1, size)
    expected = torch.stack([rotated(x[0, t, 0], start + t) for t in range(length)])
    torch.testing.assert_close(apply_rope(x, start)[0, :, 0], expected, atol=1e-5, rtol=1e-4)


@given(st.integers(1, 9), st.integers(0, 60), st.integers(0, 9))
def test_rope_from_a_start_equals_a_slice_of_a_longer_text(
    length: int, start: int, after: int
) -> None:
    """Bit by bit, so that a cache changes nothing. Position 0 is not rotated."""
    x = normal(2, start + length + after, 3, 4)
    full = apply_rope(x, 0)
    end = start + length
    assert torch.equal(apply_rope(x[:, start:end].contiguous(), start), full[:, start:end])
    assert torch.equal(full[:, 0], x[:, 0])


def test_a_table_computed_in_inference_mode_works_in_training() -> None:
    rotation_table.cache_clear()
    x = normal(2, 5, 3, 4).requires_grad_()
    with torch.inference_mode():
        apply_rope(x, 0)
    apply_rope(x, 0).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())


@given(st.integers(1, 40), st.integers(0, 300), st.sampled_from([2, 4, 10]))
def test_rope_in_real_numbers_equals_rope_in_complex_numbers(
    length: int, start: int, size: int
) -> None:
    """Compilers and exports use real numbers. Gradients are equal, too."""
    inputs = [normal(2, length, 3, size, seed=start).requires_grad_() for _ in range(2)]
    outputs = [apply_rope(inputs[0], start)]
    with patch("torch.compiler.is_compiling", return_value=True):
        outputs.append(apply_rope(inputs[1], start))
    for y in outputs:
        (y * normal(*y.shape, seed=1)).sum().backward()
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, atol=1e-6, rtol=0)


def with_large_weights(module: RotaryAttention) -> RotaryAttention:
    """Set weights, in double precision, so large that attention is far from uniform."""
    for i, parameter in enumerate(module.parameters()):
        nn.init.normal_(parameter, std=2.0, generator=torch.Generator().manual_seed(i))
    return module.double()


@given(st.integers(1, 9), st.integers(1, 3), st.sampled_from([2, 6]))
def test_rotary_attention_equals_a_loop_over_heads_and_queries(
    length: int, heads: int, size: int
) -> None:
    width = heads * size
    module = with_large_weights(RotaryAttention(width, heads))
    x = normal(2, length, width, dtype=torch.double)
    matrices = module.qkv.weight.split(width)
    for b in range(2):
        outputs = []
        for h in range(heads):
            rows = slice(h * size, (h + 1) * size)
            q, k, v = ((x[b] @ matrix[rows].T).detach() for matrix in matrices)
            q, k = (
                torch.stack(
                    [rotated(row / row.square().mean().sqrt(), t) for t, row in enumerate(y)]
                )
                for y in (q, k)
            )
            weights = reference_weights(q, k)
            torch.testing.assert_close(module.weights(x)[b, h], weights, atol=1e-5, rtol=1e-4)
            outputs.append(weights @ v)
        expected = torch.cat(outputs, dim=1) @ module.output.weight.T
        torch.testing.assert_close(module(x)[b], expected, atol=1e-4, rtol=1e-4)


def test_queries_and_keys_have_a_root_mean_square_of_1() -> None:
    """Even if the input is large; values are not normed."""
    module = with_large_weights(RotaryAttention(WIDTH, HEADS))
    x = 30 * normal(2, 7, WIDTH, dtype=torch.double)
    q, k, v = module.split(x, 5)
    for y in (q, k):
        assert y.shape == (2, HEADS, 7, WIDTH // HEADS)
        torch.testing.assert_close(y.square().mean(-1), torch.ones_like(y[..., 0]))
    values = x @ module.qkv.weight[-WIDTH:].T
    torch.testing.assert_close(v.transpose(1, 2).flatten(2), values)


@torch.no_grad()
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_rotary_attention_in_pieces_with_a_cache_equals_attention_at_once(
    sizes: list[int],
) -> None:
    module = with_large_weights(RotaryAttention(WIDTH, HEADS))
    x = normal(2, sum(sizes), WIDTH, dtype=torch.double)
    torch.testing.assert_close(run_in_pieces(module, x, sizes), module(x))


@pytest.mark.parametrize(("width", "heads"), [(6, 2), (3, 1), (9, 3)])
def test_rotary_attention_refuses_an_odd_head_size(width: int, heads: int) -> None:
    with pytest.raises(InputError, match=f"width is {width} and heads is {heads}: .* even"):
        RotaryAttention(width, heads)
