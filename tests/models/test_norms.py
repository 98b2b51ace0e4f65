"""RMSNorm, compared with PyTorch's own and with finite differences."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lit_gpt_scratch.models.modern import rms_norm


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def test_the_gradient_of_rms_norm_equals_finite_differences() -> None:
    x = normal(3, 5, dtype=torch.double).requires_grad_()
    assert torch.autograd.gradcheck(rms_norm, (x,))


@given(st.integers(1, 4), st.integers(1, 9), st.floats(-3, 3))
def test_rms_norm_equals_pytorchs_at_every_scale(rows: int, width: int, exponent: float) -> None:
    """Value and gradient."""
    scale = 10**exponent
    x = (scale * normal(rows, width)).requires_grad_()
    copy = x.detach().clone().requires_grad_()
    actual, expected = rms_norm(x), F.rms_norm(copy, (width,), eps=0.0)
    torch.testing.assert_close(actual, expected)
    gradient = normal(rows, width, seed=1)
    actual.backward(gradient)
    expected.backward(gradient)
    # With one channel, for instance, the exact gradient is 0 and both have rounding errors only.
    torch.testing.assert_close(scale * x.grad, scale * copy.grad, atol=1e-5, rtol=1e-4)


def test_rms_norm_of_zeros_is_zero_with_a_finite_gradient() -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    y = rms_norm(x)
    y.sum().backward()
    assert not y.any()
    assert x.grad.isfinite().all()


def test_rms_norm_returns_autocasts_dtype_or_the_given_one() -> None:
    """It rounds once, at the end. Gradients have the dtype of the input."""
    x, y = (normal(6, 32).requires_grad_() for _ in range(2))
    exact = rms_norm(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = rms_norm(y)
        assert rms_norm(y, torch.float32).dtype == torch.float32
    assert exact.dtype == torch.float32
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, exact.bfloat16())
    gradient = normal(6, 32, seed=1)
    exact.backward(gradient)
    rounded.backward(gradient.bfloat16())
    assert y.grad.dtype == torch.float32
    assert (y.grad - x.grad).norm() < 2**-7 * x.grad.norm()
