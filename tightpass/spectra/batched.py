"""Many small SVDs: one per core on the processor, all at once on a GPU, which one after the other would leave idle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import get_lapack_funcs

from tightpass.errors import VerificationError
from tightpass.spectra import device
from tightpass.spectra.dense import verified
from tightpass.spectra.threads import one_per_core
from tightpass.spectra.verify import check_values, squared_norm

Matrix = NDArray[np.floating[Any]]
Factors = Callable[[int], tuple[Matrix, Matrix] | None]
"""C (n, d_out) and B (n, d_in) with block (t, t) = CᵀB of rank n at most, where known (`Jacobian.factors`)."""
CANCELLATION = 4.0
"""Factors are used while ‖C‖_F·‖B‖_F is at most this many times √n·‖A‖_F."""


def block_values(blocks: torch.Tensor, factors: Factors = lambda t: None) -> list[Matrix]:
    """Singular values of each of (k, m, n) blocks, verified; `factors` is asked for block 0 .. k − 1.

    Raises VerificationError if no route's answer can be trusted.
    """
    if blocks.is_cuda:
        return _on_device(blocks)
    whole = blocks.numpy()
    return one_per_core(lambda i: _block_values(whole[i], factors(i)), range(len(whole)))


def _on_device(blocks: torch.Tensor) -> list[Matrix]:
    candidates: list[tuple[str, Callable[[Any], Any]]] = [("svdvals", torch.linalg.svdvals)]
    if blocks.dtype == torch.float32:
        candidates.append(("gram", _gram))
    key = (blocks.device.index, str(blocks.dtype), device.size_class(tuple(blocks.shape)), "batched")
    best = device.fastest(key, candidates, blocks[: max(1, len(blocks) // 4)])
    found = dict(candidates)[best](blocks).cpu().numpy()
    values = []
    for block, sigma in zip(blocks.cpu().numpy(), found, strict=True):
        try:
            check_values(sigma, squared_norm(block), block.shape)
            values.append(sigma)
        except VerificationError:
            values.append(one(block))
    return values


def _gram(blocks: torch.Tensor) -> torch.Tensor:
    """Through float64 Gram matrices of float32 blocks: batched on a GPU, and exact to 1e-8 σ₁ (`gram`)."""
    wide = blocks.double()
    G = wide.mT @ wide if blocks.shape[1] >= blocks.shape[2] else wide @ wide.mT
    squares: torch.Tensor = torch.linalg.eigvalsh(G).clamp(min=0)
    return squares.sqrt().flip(-1).float()


def one(A: Matrix) -> Matrix:
    """Singular values of one of many small matrices, on one thread."""
    return verified(A, threads=1).values  # type: ignore[no-any-return]


def factored_values(C: Matrix, B: Matrix) -> Matrix:
    """Singular values of A = CᵀB for C (n, M) and B (n, N) with n ≤ min(M, N): those of the n × n core
    R_C·R_Bᵀ from QR of both factors, and min(M, N) − n exact zeros. Raises as `dense.verified` does."""
    n, size = len(C), min(C.shape[1], B.shape[1])
    values = np.zeros(size, dtype=C.dtype)
    if n:
        values[:n] = one(_triangle(C) @ _triangle(B).T)
    return values


def _triangle(F: Matrix) -> Matrix:
    """R (n, n) of the QR factorisation of Fᵀ, F (n, m) with n ≤ m. LAPACK's own: twice as fast as NumPy's door to it."""
    (geqrf,) = get_lapack_funcs(("geqrf",), (F,))
    factored, _, _, info = geqrf(F.T, lwork=64 * len(F))
    if info != 0:
        raise np.linalg.LinAlgError(f"geqrf: argument {-info} is wrong")
    return np.triu(factored[: len(F)])


def _block_values(A: Matrix, pair: tuple[Matrix, Matrix] | None) -> Matrix:
    """By the factors where there are some, they do not cancel, and their answer fits the block that was written.

    The core's rounding is relative to ‖C‖·‖B‖, which is about √n·‖A‖_F unless terms of CᵀB cancel.
    """
    if pair is not None and np.linalg.norm(pair[0]) * np.linalg.norm(pair[1]) <= CANCELLATION * np.sqrt(
        len(pair[0]) * squared_norm(A)
    ):
        try:
            values = factored_values(*pair)
            check_values(values, squared_norm(A), A.shape)
            return values
        except VerificationError:
            pass
    return one(A)
