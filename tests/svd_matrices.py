"""Matrices that are hard for an SVD, and their singular values in more precision than float64."""

from __future__ import annotations

import numpy as np
import scipy.linalg


def orthogonal(rng, m, n):
    return np.linalg.qr(rng.standard_normal((m, n)))[0]


def with_spectrum(sigma, rows=None, seed=0):
    """A matrix with these singular values, to rounding."""
    rng = np.random.default_rng(seed)
    n = len(sigma)
    return (orthogonal(rng, rows or n, n) * sigma) @ orthogonal(rng, n, n).T


def kahan(n, theta=1.2):
    return np.diag(np.sin(theta) ** np.arange(n)) @ (np.eye(n) - np.cos(theta) * np.triu(np.ones((n, n)), 1))


def lauchli(n, mu):
    """Ones above mu·I: one large value, the others all mu (Läuchli 1961)."""
    return np.vstack([np.ones((1, n)), mu * np.eye(n)])


def wilkinson_glued(n, glue=1e-8):
    """Copies of W21+ joined by tiny entries: pairs of values that agree to rounding."""
    d = np.tile(np.abs(np.arange(21) - 10.0), n // 21 + 1)[:n]
    e = np.ones(n - 1)
    e[20::21] = glue
    return np.diag(d) + np.diag(e, 1) + np.diag(e, -1)


def repeated(n):
    """Blocks of equal values, the kind that divide and conquer has failed on."""
    return np.kron(np.eye(-(-n // 4)), np.ones((4, 4)))[:n, :n]


def hostile(n, dtype, seed=0):
    """Name -> matrix of about n columns, in `dtype`."""
    ulp, rng = float(np.finfo(dtype).eps), np.random.default_rng(seed)
    tiny, huge = float(np.finfo(dtype).tiny) / ulp, float(np.finfo(dtype).max) * ulp
    even = np.linspace(1, ulp, n)
    matrices = {
        "zero": np.zeros((n, n)),
        "identity": np.eye(n),
        "even": with_spectrum(even),
        "even near underflow": with_spectrum(even) * tiny,
        "even near overflow": with_spectrum(even) * huge,
        "geometric": with_spectrum(np.geomspace(1, ulp, n)),
        "clustered": with_spectrum(np.r_[1.0, np.full(n - 1, 1e-3)]) if n > 1 else np.ones((1, 1)),
        "one large": with_spectrum(np.r_[1.0, np.full(n - 1, ulp)]),
        "one small": with_spectrum(np.r_[np.ones(n - 1), ulp]),
        "log-random": with_spectrum(np.sort(10.0 ** rng.uniform(np.log10(ulp), 0, n))[::-1]),
        "gaussian": rng.standard_normal((n, n)),
        "ones": np.ones((n, n)),
        "kahan": kahan(n),
        "hilbert": scipy.linalg.hilbert(n),
        "läuchli": lauchli(n, np.sqrt(ulp)),
        "wilkinson": wilkinson_glued(n),
        "repeated": repeated(n),
        "rank one": np.outer(rng.standard_normal(n), rng.standard_normal(n)),
        "tall": with_spectrum(np.geomspace(1, 1e-4, n), rows=2 * n + 3),
        "wide": with_spectrum(np.geomspace(1, 1e-4, n), rows=n + 7).T,
    }
    return {name: A.astype(dtype) for name, A in matrices.items()}


def reference(A):
    """Singular values, descending: of float32 in float64 by LAPACK, of float64 in long double by rotations."""
    if A.dtype == np.float32:
        return np.linalg.svd(A.astype(np.float64), compute_uv=False)
    return jacobi(A).astype(np.longdouble)


def jacobi(A):
    """One-sided rotations in long double, all disjoint pairs of columns at once (Hestenes 1958)."""
    work = np.array(A if A.shape[0] >= A.shape[1] else A.T, dtype=np.longdouble)
    n = work.shape[1]
    if n % 2:
        work = np.hstack([work, np.zeros((len(work), 1), np.longdouble)])
    size = work.shape[1]
    order = np.arange(size)
    tolerance = np.longdouble(1e-18)
    for _ in range(40):
        turned = False
        for _ in range(size - 1):
            p, q = order[: size // 2], order[size // 2 :][::-1]
            x, y = work[:, p], work[:, q]
            pp, qq, pq = (x * x).sum(0), (y * y).sum(0), (x * y).sum(0)
            turn = np.abs(pq) > tolerance * np.sqrt(pp * qq)
            turned |= bool(turn.any())
            safe = np.where(turn, pq, 1)
            zeta = (qq - pp) / (2 * safe)
            t = np.where(zeta < 0, -1, 1) / (np.abs(zeta) + np.hypot(1, zeta))
            c = np.where(turn, 1 / np.hypot(1, t), 1)
            s = np.where(turn, c * t, 0)
            work[:, p], work[:, q] = c * x - s * y, s * x + c * y
            order = np.r_[order[0], order[-1], order[1:-1]]
        if not turned:
            break
    scale = np.abs(work).max() or np.longdouble(1)
    return np.sort(scale * np.sqrt(((work / scale) ** 2).sum(0)))[::-1][:n]
