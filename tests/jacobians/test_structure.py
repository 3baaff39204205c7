"""A claimed structure holds for every pair of tokens, to rounding, or is refused."""

from __future__ import annotations

import pytest
import torch

import tightpass as tp
from tightpass.errors import VerificationError

TOKENS = 16


def point(tokens, d, dtype=torch.float64):
    return torch.randn(tokens, d, dtype=dtype, generator=torch.Generator().manual_seed(5))


def leaking(reader, read, size):
    """x with `size` of token `read` in token `reader`."""

    def f(x):
        y = x.clone()
        y[reader] = y[reader] + size * x[read].roll(1)
        return y

    return f


@pytest.mark.parametrize(("dtype", "size"), [(torch.float64, 1e-10), (torch.float32, 5e-4), (torch.float64, 1e-13)])
@pytest.mark.parametrize(("reader", "read"), [(2, 3), (2, 1), (9, 6), (0, 15), (15, 14)])
def test_no_pair_of_tokens_leaks_through_a_claimed_block_diagonal(reader, read, size, dtype):
    x = point(TOKENS, 5, dtype)
    with pytest.raises(VerificationError, match="claimed BlockDiagonal"):
        tp.jacobian(leaking(reader, read, size), x, tp.BlockDiagonal())


@pytest.mark.parametrize("reader", range(0, TOKENS - 1, 2))
def test_no_later_token_is_read_through_a_claimed_lower_triangle(reader):
    f = leaking(reader, reader + 1, 1e-10)
    with pytest.raises(VerificationError, match=f"output token {reader} depends on input token {reader + 1}"):
        tp.jacobian(lambda x: f(x).cumsum(0) if reader == 0 else f(x), point(TOKENS, 3), tp.BlockLowerTriangular())


@pytest.mark.parametrize("structure", [tp.BlockDiagonal(), tp.BlockLowerTriangular()])
def test_the_leak_of_a_small_token_does_not_hide_behind_a_large_one(structure):
    scales = torch.logspace(8, -8, TOKENS, dtype=torch.float64)[:, None]

    def f(x):
        y = scales * x
        return y + torch.nn.functional.pad(1e-10 * scales[12] * x[13:14], (0, 0, 12, 3))

    with pytest.raises(VerificationError, match="claimed"):
        tp.jacobian(f, point(TOKENS, 4), structure)
    assert tp.jacobian(lambda x: scales * x, point(TOKENS, 4), structure).shape == (64, 64)


@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rounding_is_no_leak(tokens, dtype):
    """A causal convolution by Fourier transform rounds where it should be zero; dead tokens receive nothing."""
    x = point(tokens, 6, dtype)
    kernel = torch.linspace(1, 0.5, tokens, dtype=dtype)[:, None]

    def convolution(x):
        return torch.fft.irfft(
            torch.fft.rfft(x, n=2 * tokens, dim=0) * torch.fft.rfft(kernel, n=2 * tokens, dim=0), n=2 * tokens, dim=0
        )[:tokens]

    tp.jacobian(convolution, x, tp.BlockLowerTriangular())
    alive = (torch.arange(tokens) % 3 == 0).to(dtype)[:, None]
    tp.jacobian(lambda x: torch.tanh(x) * alive, x, tp.BlockDiagonal())
    tp.jacobian(lambda x: x * 0, x, tp.BlockDiagonal())
