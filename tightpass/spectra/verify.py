"""Is a list of singular values the spectrum of that matrix?

Σσ² = ‖A‖_F² cannot see the tail, so the tail is probed as well: small matrices against a
reference of more precision, value by value; large ones by counts at a few thresholds (inertia, Sylvester 1852) and
by inverse iteration at the bottom. Between those thresholds a wrong value can hide.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack, lu_factor, lu_solve

from tightpass.confidence import ASSUMED, CERTAIN, allowed_energy, tolerance
from tightpass.errors import VerificationError
from tightpass.spectra.refine import ARRAYS, reference_values
from tightpass.work import Work, passing

Matrix = NDArray[np.floating[Any]]

AUGMENTED = 4096
"""Up to this size counts are taken of the augmented matrix, four times as large as A, which sees every value."""
SMALL = 1024
"""Up to this size a reference of more than working precision is cheap beside LAPACK's SVD and checks every value."""


@dataclass(frozen=True)
class SvdError:
    """A bound on |σ̂ − σ| by the SVD itself; `method` says how it is known, `confidence` how surely (`confidence`), and
    `chance` with which probability random probes let it fail."""

    bound: float
    method: str
    confidence: str
    chance: float = 0.0


def check_values(
    values: Matrix, energy: float, shape: tuple[int, ...], dtype: Any = None, spacing: float | None = None
) -> None:
    """Finite, non-negative, sorted, as many as there should be, and Σσ² = ‖A‖_F² within the rounding of `dtype` (the
    values' own, if left out), which has numbers `spacing` apart next to zero (likewise)."""
    if len(values) != min(shape):
        raise VerificationError(f"expected {min(shape)} singular values, got {len(values)}")
    if not np.all(np.isfinite(values)):
        raise VerificationError(f"{int(np.sum(~np.isfinite(values)))} singular values are not finite")
    if len(values) and (values[-1] < 0 or np.any(np.diff(values) > 0)):
        raise VerificationError("singular values are negative or not sorted")
    squares = float(np.sum(np.square(values, dtype=np.float64)))
    least = float(np.finfo(dtype or values.dtype).smallest_subnormal) if spacing is None else spacing
    most = max(energy, squares)
    allowed = allowed_energy(max(shape), dtype or values.dtype) * most
    allowed += least * (np.sqrt(len(values) * most) + len(values) * least)
    if not abs(squares - energy) <= allowed:
        raise VerificationError(f"Σσ² = {squares:.17g}, but ‖J‖_F² = {energy:.17g}: they differ beyond rounding")


def check_leading(values: Matrix, most: float) -> None:
    """Finite, non-negative, sorted, and Σσ² not above what ‖A‖_F² can be."""
    squares = float(np.sum(np.square(values, dtype=np.float64)))
    check_values(values, squares, values.shape)
    if squares > most:
        raise VerificationError(f"Σσ² = {squares:.9g} of the leading values exceeds ‖J‖_F², at most {most:.9g}")


def measured_error(A: Matrix, values: Matrix) -> SvdError:
    """The largest |σ̂ − σ| of one SVD, held against `reference_values`, whose own error counts as well.

    Raises VerificationError if it differs from the reference beyond rounding anywhere in the range.
    """
    true = reference_values(A)
    apart = float(np.max(np.abs(true.values - values)))
    check_apart(apart, max(float(values[0]), float(true.values[0])), A.shape, A.dtype)
    return SvdError(apart + true.error, "measured: every value against a reference of more precision", CERTAIN)


def check_apart(apart: float, sigma1: float, shape: tuple[int, ...], dtype: Any) -> None:
    """Raises VerificationError if two SVDs of one matrix differ by more than twice rounding."""
    if not apart <= 2 * tolerance(sigma1, max(shape), dtype):
        raise VerificationError(f"two SVDs of one matrix differ by {apart:.1e}, beyond rounding of σ₁ = {sigma1:.1e}")


def check_dense(A: Matrix, values: Matrix) -> tuple[SvdError, tuple[str, ...]]:
    """The error bound of one dense SVD and what was checked, in words.

    Raises VerificationError if any probe contradicts the values.
    """
    if max(A.shape) <= SMALL or min(A.shape) == 1 or float(values[0]) == 0:
        return measured_error(A, values), ("every value, tail included, against a reference of more precision",)
    counted = check_counts(A, values)
    bottom = check_bottom(A, values)
    bound = tolerance(float(values[0]), max(A.shape), A.dtype)
    lowest = "the noise" if max(A.shape) <= AUGMENTED else "1e-6 σ₁, below which only the smallest are probed"
    return (
        SvdError(bound, "assumed: 16·eps·√N·σ₁, more than three times LAPACK's worst in measurements", ASSUMED),
        (f"counts above {counted} thresholds down to {lowest}", f"{bottom} smallest values by inverse iteration"),
    )


def work_of_checks(size: int) -> Work:
    """Of `check_dense`, for a square matrix: references of small ones; else float64 arrays of its size, up to `AUGMENTED`
    rows the augmented matrix and its copy."""
    arrays = ARRAYS if size <= SMALL else 10 if size <= AUGMENTED else 3
    return passing(arrays * size**2 * 8)


def check_counts(A: Matrix, values: Matrix) -> int:
    """#{σ > τ} by inertia, at thresholds across the range; returns how many.

    Up to `AUGMENTED` rows of [[−τI, A], [Aᵀ, −τI]], whose positive eigenvalues are the σ − τ > 0; it resolves
    σ to rounding. Beyond, of AᵀA − τ²I in float64, which blurs σ by eps·√N·σ₁²/τ, so that
    thresholds stay above 1e-6 σ₁.
    """
    sigma1, n = float(values[0]), min(A.shape)
    wide = A.astype(np.float64, copy=False)
    rounding = tolerance(sigma1, max(A.shape), A.dtype)
    whole = max(A.shape) <= AUGMENTED
    lowest = 4 * rounding if whole else max(1e-6 * sigma1, 4 * rounding)
    gram = None if whole else (wide.T @ wide if A.shape[0] >= A.shape[1] else wide @ wide.T)
    usable = int(np.sum(values > lowest))
    thresholds = {
        max(_gap_near(values, i, max(1, usable // 50)), lowest) for i in (usable // 4, usable // 2, usable) if i
    }
    for tau in sorted(thresholds):
        if gram is None:
            count, blur = _eigenvalues_above(_augmented(wide), tau), 2 * rounding
        else:
            count = _eigenvalues_above(gram, tau**2)
            blur = rounding + tolerance(sigma1, n, np.float64) * sigma1 / tau
        low, high = int(np.sum(values > tau + blur)), int(np.sum(values > tau - blur))
        if not low <= count <= high:
            raise VerificationError(
                f"{count} singular values exceed {tau:.3e} by inertia, the SVD has {low}..{high} there"
            )
    return len(thresholds)


def _augmented(A: Matrix) -> Matrix:
    """[[0, A], [Aᵀ, 0]]: eigenvalues ±σᵢ, and zeros."""
    m, n = A.shape
    whole = np.zeros((m + n, m + n), order="F")
    whole[:m, m:] = A
    whole[m:, :m] = A.T
    return whole


def _gap_near(values: Matrix, index: int, reach: int) -> float:
    """The geometric middle of the widest relative gap within `reach` of an index (0 next to a zero)."""
    near = np.arange(max(1, index - reach), min(len(values) - 1, index + reach) + 1)
    widest = near[np.argmax(values[near - 1] / np.maximum(values[near], np.finfo(np.float64).tiny))]
    return float(np.sqrt(np.float64(values[widest - 1]) * np.float64(values[widest])))


def _eigenvalues_above(S: Matrix, shift: float) -> int:
    """Inertia of S − shift·I by LDLᵀ (Bunch & Kaufman 1977): its 2 x 2 pivots have one eigenvalue of each sign."""
    shifted = S.copy(order="F")
    shifted[np.diag_indices(len(S))] -= shift
    work, _ = lapack.dsytrf_lwork(len(S), lower=1)
    ldu, pivots, info = lapack.dsytrf(shifted, lower=1, lwork=int(work), overwrite_a=1)
    if info < 0:
        raise VerificationError(f"LDLᵀ of the shifted matrix failed (info {info})")
    paired = pivots < 0
    return int(np.sum(np.diagonal(ldu)[~paired] > 0) + np.sum(paired) // 2)


def check_bottom(A: Matrix, values: Matrix, size: int = 8, steps: int = 30) -> int:
    """The smallest values by block inverse iteration on AᵀA through LU of A; returns how many.

    For orthonormal V the singular values of A V bound the smallest ones of A from above (Cauchy): a larger
    one is wrong. Once the iteration stagnates, a σ_min below half of what it found is taken for wrong as well.
    """
    R = A if A.shape[0] == A.shape[1] else np.linalg.qr(A if A.shape[0] > A.shape[1] else A.T, mode="r")
    n = len(R)
    size = min(size, n)
    slack = 2 * tolerance(float(values[0]), max(A.shape), A.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # exact singularity is expected, and handled here
        lu, pivots = lu_factor(R, check_finite=False)
    diagonal = np.diagonal(lu).copy()
    tiny = np.finfo(A.dtype).eps * float(values[0])
    np.fill_diagonal(lu, np.where(np.abs(diagonal) < tiny, tiny, diagonal))
    V = np.linalg.qr(np.random.default_rng(0).standard_normal((n, size)).astype(A.dtype))[0]
    before = float("inf")
    for _ in range(steps):
        W = np.linalg.qr(lu_solve((lu, pivots), V, trans=1, check_finite=False))[0]
        V = np.linalg.qr(lu_solve((lu, pivots), W, check_finite=False))[0]
        above = np.linalg.svd(R @ V, compute_uv=False)
        if float(above[-1]) <= slack or float(above[-1]) > 0.98 * before:
            break
        before = float(above[-1])
    tail = values[-size:]
    if np.any(tail > above + slack):
        raise VerificationError(f"the smallest singular values are at most {above}, the SVD says {tail}")
    if float(tail[-1]) < 0.5 * float(above[-1]) - slack:
        raise VerificationError(f"the smallest singular value is {above[-1]:.3e}, the SVD says {tail[-1]:.3e}")
    return size
