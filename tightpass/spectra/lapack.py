"""LAPACK's two ways to all singular values, and to vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Matrix = NDArray[np.floating[Any]]


def triplets(A: Matrix) -> tuple[Any, Any, Any]:
    """U (m, p), s (p,) and Vh (p, n), p = min(m, n), by divide and conquer, whose products torch's threads do; by QR iteration
    where that does not converge, as some libraries' does not on many repeated values."""
    try:
        U, s, Vh = (part.numpy() for part in torch.linalg.svd(torch.from_numpy(A), full_matrices=False))
    except RuntimeError:  # torch's LinAlgError is one
        from scipy.linalg import svd

        U, s, Vh = svd(A, full_matrices=False, lapack_driver="gesvd", check_finite=False)
    return U, s, Vh


def gesdd(A: Matrix) -> Matrix:
    """Singular values by divide and conquer's values-only path (dqds); NumPy does it in float64 for either precision."""
    with np.errstate(over="ignore"):  # an infinite σ₁ is refused by those who check
        return np.linalg.svd(A, compute_uv=False)


def gesvd(A: Matrix) -> Matrix:
    """Singular values by QR iteration: slower, and converges where gesdd fails on repeated values."""
    from scipy.linalg import svd

    return svd(A, compute_uv=False, lapack_driver="gesvd", check_finite=False)  # type: ignore[no-any-return]
