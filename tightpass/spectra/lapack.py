"""LAPACK's two ways to all singular values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.floating[Any]]


def gesdd(A: Matrix) -> Matrix:
    """Singular values by divide and conquer's values-only path (dqds); NumPy does it in float64 for either precision."""
    with np.errstate(over="ignore"):  # an infinite σ₁ is refused by those who check
        return np.linalg.svd(A, compute_uv=False)


def gesvd(A: Matrix) -> Matrix:
    """Singular values by QR iteration: slower, and converges where gesdd fails on repeated values."""
    from scipy.linalg import svd

    return svd(A, compute_uv=False, lapack_driver="gesvd", check_finite=False)  # type: ignore[no-any-return]
