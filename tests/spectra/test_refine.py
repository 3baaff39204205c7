"""The yardstick: singular values to more than working precision, with a bound on their own error."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from svd_matrices import hostile, reference

from tightpass.spectra.refine import minus_product, reference_values

EPS = np.finfo(np.float64).eps


@pytest.mark.parametrize("n", [1, 2, 21, 40])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_reference_values_are_within_their_bound(n, dtype):
    for name, A in hostile(n, dtype).items():
        found, true = reference_values(A), reference(A)
        apart = float(np.abs(found.values - true).max())
        allowed = EPS * (1.0 if dtype == np.float64 else 64.0) * float(true[0])
        assert apart <= found.error * (1 + 1e-6) + 1e-18 * float(true[0]), name
        assert found.error <= 1.1 * allowed, name


def test_clusters_and_zeros_against_40_digits():
    """Values a few roundings apart, at 1 and at zero: where a correction of first order could go wrong."""
    rng = np.random.default_rng(0)
    U, V = (np.linalg.qr(rng.standard_normal((14, 14)))[0] for _ in range(2))
    for sigma in (
        1 + 1e-13 * rng.standard_normal(14),
        np.r_[1 + 1e-15 * rng.standard_normal(7), np.zeros(7)],
        np.r_[np.ones(5), 1e-9 * np.ones(5), 1e-16 * rng.random(4)],
        np.geomspace(1, 1e-17, 14),
    ):
        A = (U * sigma) @ V.T
        found = reference_values(A)
        with mpmath.workdps(40):
            true = sorted((s for s in mpmath.svd_r(mpmath.matrix(A.tolist()), compute_uv=False)), reverse=True)
            apart = max(abs(mpmath.mpf(float(s)) - t) for s, t in zip(found.values, true, strict=True))
        assert float(apart) <= found.error <= 1.1 * EPS * float(true[0])


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 5), (60, 60, 60), (5, 300, 2)])
@pytest.mark.parametrize("spread", [0, 12])
def test_products_that_cancel_keep_their_digits(shape, spread):
    m, k, n = shape
    rng = np.random.default_rng(1)
    X = rng.standard_normal((m, k)) * 10.0 ** rng.uniform(-spread, 0, (m, k))
    Y = rng.standard_normal((k, n)) * 10.0 ** rng.uniform(-spread, 0, (k, n))
    A = X @ Y
    with mpmath.workdps(60):
        to = np.vectorize(mpmath.mpf, otypes=[object])
        true = (to(A) - to(X) @ to(Y)).astype(np.float64)
    size = np.abs(X).max(1, keepdims=True) * np.abs(Y).max(0, keepdims=True) * k
    assert np.all(np.abs(minus_product(A, X, Y) - true) <= 1e-3 * EPS * size)
