"""LAPACK's error on matrices with known singular values, in units of eps·√N·σ₁.

    python benchmarks/svd_error.py

The floor of a large dense Jacobian assumes 16 of these units (`spectra/verify.py`). Matrices: all
ones (σ = N, 0, ...), and products of random reflections with known values. Float32 as well, since its
errors are LAPACK's, not the construction's.
"""

from __future__ import annotations

import numpy as np
from common import save

from tightpass.spectra.lapack import gesdd

SIZES = (300, 700, 1025, 1500, 2000)


def reflected(sigma: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Q₁·diag(σ)·Q₂ with Qᵢ products of 20 Householder reflections, rounded a few times at most."""
    A = np.diag(sigma).astype(np.longdouble)
    for side in (0, 1):
        for _ in range(20):
            v = rng.standard_normal(len(sigma)).astype(np.longdouble)
            v /= np.sqrt(v @ v)
            A = A - 2 * np.outer(v, v @ A) if side == 0 else A - 2 * np.outer(A @ v, v)
    return A


def main() -> None:
    rng = np.random.default_rng(0)
    cases = []
    for n in SIZES:
        ones = np.zeros(n)
        ones[0] = n
        matrices = {"ones": (np.ones((n, n)), ones)}
        if n <= 700:
            for name, sigma in {
                "flat": np.ones(n),
                "geometric": np.geomspace(1, 1e-12, n),
                "step": np.r_[np.ones(n // 2), np.zeros(n - n // 2)],
            }.items():
                matrices[name] = (reflected(sigma, rng), sigma)
        for name, (A, sigma) in matrices.items():
            for dtype in (np.float64, np.float32):
                error = np.abs(gesdd(A.astype(dtype)).astype(np.float64) - sigma).max()
                units = float(error / (np.finfo(dtype).eps * np.sqrt(n) * sigma[0]))
                cases.append({"matrix": name, "size": n, "dtype": np.dtype(dtype).name, "units": units})
    worst = max(case["units"] for case in cases)
    print(f"worst: {worst:.2f} eps·√N·σ₁")
    save("svd_error", {"unit": "eps·√N·σ₁", "worst": worst, "cases": cases})


if __name__ == "__main__":
    main()
