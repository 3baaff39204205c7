"""Singular values to more than working precision: the yardstick that a fast answer's error is measured with.

From A ≈ U S Vᵀ in float64, with R = A − U S Vᵀ and the losses of orthonormality D_U = I − UᵀU, D_V = I − VᵀV formed
exactly enough, the singular values of A are, up to ‖D‖² ~ 1e-28, those of

    S + F,   F = UᵀRV − (D_U S + S D_V)/2

(Ogita & Aishima 2020 refine vectors from the same three matrices). F is of the size of LAPACK's backward error, so a
correction of first order leaves a small part of one rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import svd

Matrix = NDArray[np.float64]

APART = 1000.0
"""Values that are this many ‖F‖ apart change each other by less than 2·‖F‖/1000."""

ARRAYS = 16
"""Float64 arrays of a matrix's size that `reference_values` holds."""


@dataclass(frozen=True)
class Reference:
    """Singular values, descending, and a bound on their error."""

    values: NDArray[np.float64]
    error: float


def reference_values(A: NDArray[np.floating[Any]]) -> Reference:
    """All min(M, N) singular values of a small matrix (M, N), float32 or float64, finite.

    Of a float32 matrix a float64 SVD is exact enough: its error is 2⁻²⁹ of what is to be measured. Raises
    numpy.linalg.LinAlgError where LAPACK does.
    """
    size = min(A.shape)
    largest = float(np.max(np.abs(A), initial=0.0))
    if largest == 0:
        return Reference(np.zeros(size), 0.0)
    scale = 2.0 ** math.frexp(largest)[1]
    square = np.zeros((max(A.shape),) * 2)  # padded, so that U spans all that A reaches
    square[: A.shape[0], : A.shape[1]] = np.asarray(A, dtype=np.float64) / scale
    try:
        U, S, Vh = np.linalg.svd(square)
    except np.linalg.LinAlgError:  # divide and conquer gives up on some repeated values, QR iteration does not
        U, S, Vh = svd(square, lapack_driver="gesvd")
    least = float(np.finfo(np.float64).smallest_subnormal)  # where the scale leaves few digits
    if A.dtype == np.float32:
        return Reference(S[:size] * scale, 64 * float(np.finfo(np.float64).eps) * float(S[0]) * scale + least)
    F = correction(square, U, S, Vh)
    values, error = perturbed(S, F)
    return Reference(values[:size] * scale, error * scale + least)


def correction(A: Matrix, U: Matrix, S: Matrix, Vh: Matrix) -> Matrix:
    """F of the formula above, (n, n)."""
    left, right = lost(U), lost(Vh.T)
    US = U * S
    rest = minus_product(A, US, Vh)
    rest -= minus_scaled(US, U, S) @ Vh
    F: Matrix = U.T @ rest @ Vh.T - (left * S + S[:, None] * right) / 2
    return F


def perturbed(S: Matrix, F: Matrix) -> tuple[Matrix, float]:
    """Singular values of diag(S) + F, S descending and F small, and a bound on their error.

    Values closer than `APART`·‖F‖ form a cluster. One away from zero, S = s̄·I + G, has s̄ + the eigenvalues of
    (G + Gᵀ)/2, up to ‖G‖²/(2 s̄); one at zero has the singular values of its own block. By Weyl no value is more
    than ‖F‖ from S.
    """
    size = norm_bound(F)
    if size == 0:
        return S, 0.0
    worst = 2 * size / APART
    edges = np.flatnonzero(-np.diff(S) > APART * size) + 1
    values = S + np.diagonal(F)  # of those that stand alone
    if S[0] > APART * size:
        worst = max(worst, size**2 / (2 * APART * size))
    starts, stops = np.r_[0, edges], np.r_[edges, len(S)]
    crowded = (stops - starts > 1) | (S[stops - 1] <= APART * size)
    for start, stop in zip(starts[crowded], stops[crowded], strict=True):
        part = slice(start, stop)
        block, own = F[part, part], S[part]
        if own[-1] <= APART * size:
            values[part] = np.linalg.svd(np.diag(own) + block, compute_uv=False)
            worst = max(worst, 64 * float(np.finfo(np.float64).eps) * float(own[0] + size))
            continue
        centre = float(own[len(own) // 2])
        G = np.diag(own - centre) + (block + block.T) / 2
        values[part] = centre + np.linalg.eigvalsh(G)[::-1]
        worst = max(worst, (float(own[0] - own[-1]) + size) ** 2 / (2 * float(own[-1])))
    rounding = float(np.finfo(np.float64).eps) / 2 * float(S[0])
    if worst > size:
        return S, size + rounding
    return np.sort(values)[::-1], worst + rounding


def norm_bound(F: Matrix) -> float:
    """A bound on ‖F‖₂, little above it: ‖FᵀF‖₂² ≤ ‖FᵀF·FᵀF‖₁."""
    largest = float(np.max(np.abs(F)))
    if largest == 0:
        return 0.0
    G = (F / largest).T @ (F / largest)
    root = float(np.max(np.sum(np.abs(G @ G), axis=0)) ** 0.25)
    return largest * root * (1 + 1e-10)


def lost(U: Matrix) -> Matrix:
    """I − UᵀU, as `minus_product` forms it; it is symmetric, and so are half of the products of slices."""
    slices = _slices(U, _bits(len(U)), axis=0)
    rest: Matrix = np.eye(U.shape[1])
    for i, j in ((0, 0), (0, 1), (0, 2), (1, 1)):
        product = slices[i].T @ slices[j]
        rest -= product if i == j else product + product.T
    return rest


def _bits(depth: int) -> int:
    """Of a slice: sums of so many products of two are exact."""
    return math.floor((53 - math.log2(depth)) / 2)


def minus_product(A: Matrix, X: Matrix, Y: Matrix) -> Matrix:
    """A − X·Y where the product nearly cancels A, to far less than one rounding of A.

    X and Y are cut into three slices of so few bits that products of slices are exact (Ozaki, Ogita, Oishi &
    Rump 2012); those that matter are taken off A from the largest to the smallest.
    """
    bits = _bits(X.shape[1])
    left, right = _slices(X, bits, axis=1), _slices(Y, bits, axis=0)
    rest = A.copy()
    for level in range(3):
        for i in range(level + 1):
            rest -= left[i] @ right[level - i]
    return rest


def _slices(A: Matrix, bits: int, axis: int) -> list[Matrix]:
    """Three matrices that add up to nearly A, entries of the first multiples of 2^−bits of their row's (column's) largest."""
    slices, rest = [], A
    for _ in range(3):
        top = np.frexp(np.max(np.abs(rest), axis=axis, keepdims=True))[1]
        unit = np.ldexp(1.0, top - bits)
        slices.append(np.round(rest / unit) * unit)
        rest = rest - slices[-1]
    return slices


def minus_scaled(US: Matrix, U: Matrix, S: Matrix) -> Matrix:
    """U·diag(S) − US: what rounding took from the product, by Dekker's (1971) splitting of both factors."""

    def halves(a: Matrix) -> tuple[Matrix, Matrix]:
        wide = a * (2.0**27 + 1)
        high = wide - (wide - a)
        return high, a - high

    (u, v), (s, t) = halves(U), halves(S)
    error: Matrix = ((u * s - US) + u * t + v * s) + v * t
    return error
