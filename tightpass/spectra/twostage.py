"""All singular values by the two-stage route: dense → band → bidiagonal → values.

8/3·N³ operations at the speed of products and 8·N²·b more, where LAPACK's one stage is half bound by memory (Haidar,
Ltaief & Dongarra 2011). Random probes go through both stages with the matrix: for orthogonal Q, P and Gaussian Z,

    Qᵀ·(A·Z) − B·(Pᵀ·Z) = E·Z

is what rounding, or a mistake, made of A: every answer is checked against the matrix it was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray
from scipy.special import gammaincinv

from tightpass.arrays import beside, dtype_name, on_host, placement
from tightpass.confidence import ASSUMED, PROBED, allowed_energy, tolerance
from tightpass.errors import VerificationError
from tightpass.kernels import svd
from tightpass.kernels.svd import ABSOLUTE, PROBES, RELATIVE, SAFE, SLACK
from tightpass.spectra.verify import SvdError

Matrix = Any
Values = NDArray[np.floating[Any]]

CHANCE = 9e-4
"""That the probes' bound fails, for one matrix or for all blocks of one together: what is left of a thousandth is for the
other parts of a floor. A χ² of four degrees of freedom is below 0.0861 with this probability."""
MISFIT = 8.0
"""‖E·Z‖_F may be this many eps·√N·‖A·Z‖_F; measured up to 2.3, on a matrix of ones."""
TURNED = 16.0
"""The probes' norms may change by this many eps·√N; measured up to 4.4, on a matrix of ones."""
LOSS = 10.0
"""Half of ‖QᵀQ − I‖₂ + ‖PᵀP − I‖₂ is taken for at most this many eps·√N: about 1 was measured on most matrices, 9 on
Läuchli's. It moves values by as much, relative to σ₁ at most (Ostrowski 1959), and four probes cannot see it."""


@dataclass(frozen=True)
class Bidiagonal:
    """B = Qᵀ(A + E)P, upper bidiagonal: d (n,), e (n − 1,), to be multiplied by `scale`; float64, on the host.

    misfit    ‖E·Z‖_F of the probes Z
    energy    ‖A‖_F², divided by scale²
    """

    d: NDArray[np.float64]
    e: NDArray[np.float64]
    scale: float
    shape: tuple[int, int]
    dtype: Any
    misfit: float
    energy: float

    def error(self, chance: float = CHANCE) -> float:
        """‖E‖₂ is below this, whatever E, but for a part `chance` of all draws of Z."""
        return self.misfit / quantile(chance)


def band_width(n: int) -> int:
    """The fastest on the processors at hand (docs/decisions/007)."""
    return 16 if n < 400 else 32 if n < 3000 else 64


def two_stage(
    A: Matrix, overwrite: bool = False, width: int | None = None, threads: int | None = None
) -> tuple[Values, Bidiagonal]:
    """All singular values of A (m, n), descending, in its precision, and the bidiagonal matrix that they are of.

    A           NumPy, torch or CuPy, float32 or float64
    overwrite   A may be destroyed, which saves a copy; only where m ≥ n and rows are contiguous

    Raises VerificationError for entries that are not finite, where probes, energy or norms show that B is not QᵀAP,
    and where Sturm counts do not confirm a value.
    """
    shape, wide = tuple(A.shape), A.shape[0] < A.shape[1]
    A = A.T if wide else A
    m, n = A.shape
    b = band_width(n) if width is None else width
    Z = probes(n, dtype_name(A.dtype))
    place = placement("A", A)
    in_place = overwrite and place.writable and (n == 1 or place.strides[1] == 1) and place.strides[0] >= n
    found = svd.two_stage(A, beside(Z, A), b, in_place, threads)
    d, e, values, told = found or _by_library(A, Z, b, in_place)
    if not np.isfinite(told["largest"]):
        raise VerificationError("the matrix has entries that are not finite")
    kind = np.finfo(Z.dtype)
    _check(told, float(kind.eps) * np.sqrt(m))
    squares = float(np.vdot(d, d) + np.vdot(e, e))
    if not abs(squares - told["energy"]) <= allowed_energy(m, kind.dtype) * max(told["energy"], squares):
        raise VerificationError(f"two-stage reduction: ‖B‖_F² = {squares:.17g}, but ‖A‖_F² = {told['energy']:.17g}")
    scale = told["scale"]
    B = Bidiagonal(d, e, scale, shape, kind.dtype, told["misfit"] * scale, told["energy"])
    values = bidiagonal_values(B, threads) if values is None else values
    if told.get("misplaced", 1):
        check_by_counts(B, values, threads)
    with np.errstate(over="ignore"):
        values = values * kind.dtype.type(scale)
    if not np.isfinite(values[0]):
        remedy = "scale the matrix" if kind.dtype == np.float64 else "convert the matrix to float64, or scale it"
        raise VerificationError(f"σ₁ is beyond the range of {kind.dtype}; {remedy}")
    return values, B


def _check(told: dict[str, float], unit: float) -> None:
    """Raises VerificationError for a misfit beyond rounding, or where Q or P did not keep the probes' lengths."""
    allowed = MISFIT * unit * told["left_before"]
    if not told["misfit"] <= allowed:
        raise VerificationError(
            f"two-stage reduction: QᵀAZ and BPᵀZ differ by {told['misfit']:.2e}, rounding explains {allowed:.2e}"
        )
    for side in ("right", "left"):
        before, after = told[f"{side}_before"], told[f"{side}_after"]
        if not abs(after - before) <= TURNED * unit * before:
            raise VerificationError(
                f"two-stage reduction: a transformation is not orthogonal, probes of norm {before:.9e} came out as {after:.9e}"
            )


def _by_library(A: Matrix, Z: NDArray[Any], b: int, in_place: bool) -> tuple[Any, Any, None, dict[str, float]]:
    """The reduction of `kernels.svd.two_stage` in products of the array library: for arrays on a GPU."""
    m, n = A.shape
    largest = max(-float(A.min()), float(A.max()))
    scale = (
        1.0
        if not np.isfinite(largest) or 1 / SAFE <= largest <= SAFE or largest == 0
        else 2.0 ** np.floor(np.log2(largest))
    )
    if not np.isfinite(largest):
        return np.zeros(n), np.zeros(n - 1), None, {"largest": largest, "scale": 1.0}
    rows, few = n + 2 * b, max(1, 2**24 // n)
    A = A if in_place else _rows_of(A)
    if scale != 1.0:
        A /= scale
    right = beside(np.zeros((rows, PROBES)), A)
    right[:n, :] = beside(Z.T, A)
    left = beside(np.zeros((max(m, rows), PROBES)), A)
    left[:m, :] = A @ right[:n, :]
    energy = sum(float((A[i : i + few, :] ** 2).sum()) for i in range(0, m, few))
    before = [on_host(array).astype(np.float64) for array in (left, right)]
    band = beside(np.zeros((rows, 3 * b)), A)
    svd.band_reduction(A, band, left, right, b)
    svd.bulge_chase(band, left[:rows, :], right, n, b)
    d = np.ascontiguousarray(on_host(band[:n, b]), dtype=np.float64)
    e = np.ascontiguousarray(on_host(band[: n - 1, b + 1]), dtype=np.float64)
    turned_left, turned_right = (on_host(array).astype(np.float64) for array in (left, right))
    image = np.zeros_like(turned_left)
    image[:n] = d[:, None] * turned_right[:n]
    image[: n - 1] += e[:, None] * turned_right[1:n]
    norms = [float(np.linalg.norm(array)) for array in (image - turned_left, *before, turned_left, turned_right)]
    names = ("misfit", "left_before", "right_before", "left_after", "right_after")
    return d, e, None, {"largest": largest, "scale": scale, "energy": energy, **dict(zip(names, norms, strict=True))}


def _rows_of(A: Matrix) -> Matrix:
    """A copy with contiguous rows; one that a library's arithmetic makes has the order of its argument."""
    copy = array_namespace(A).empty(A.shape, dtype=A.dtype, device=A.device)
    copy[...] = A
    return copy


def bidiagonal_values(B: Bidiagonal, threads: int | None = None) -> Values:
    """All singular values of B in A's precision, descending, not yet multiplied by its scale."""
    eps = float(np.finfo(B.dtype).eps)
    reach = float(np.abs(B.d).max() + (np.abs(B.e).max() if len(B.e) else 0.0))
    values = svd.bisection(B.d, B.e, absolute=eps * ABSOLUTE * reach, relative=eps * RELATIVE, threads=threads)
    return np.asarray(values, dtype=B.dtype)


def check_by_counts(B: Bidiagonal, values: Values, threads: int | None = None) -> None:
    """Raises VerificationError unless Sturm counts on both sides of every value, tail included, put it in its place.

    values   not yet multiplied by B's scale, which may leave few digits of them
    """
    n = len(values)
    if len(B.d) != n or not np.all(np.isfinite(values)):
        raise VerificationError(f"expected {len(B.d)} finite singular values, got {n}, or some that are not finite")
    if not (B.d.any() or B.e.any() or values.any()):
        return  # zero, and rightly so
    sigma = values.astype(np.float64)
    slack = float(np.finfo(B.dtype).eps) * (sigma + SLACK * sigma[0])
    taus = np.concatenate([np.maximum(sigma - slack, 0), sigma + slack])
    counts = svd.sturm_counts(B.d, B.e, taus, threads=threads)
    place = np.arange(n - 1, -1, -1)  # how many values are smaller
    wrong = (counts[:n] > place) | (counts[n:] <= place)
    if wrong.any():
        i = int(np.argmax(wrong))
        raise VerificationError(
            f"{int(wrong.sum())} singular values are misplaced, the first is number {i + 1}: {values[i]:.9e}, with "
            f"{place[i]} below it, where Sturm counts say {counts[i]} to {counts[n + i] - 1}"
        )


@lru_cache(maxsize=64)
def quantile(chance: float) -> float:
    """Gaussian probes make ‖E·Z‖_F less than this many ‖E‖₂ with at most this probability: the root of a quantile of χ²."""
    return float(np.sqrt(2 * gammaincinv(PROBES / 2, chance)))


def loss(sigma1: float, size: int, dtype: Any) -> float:
    """How far values may be off because Q and P are orthogonal only to rounding."""
    return LOSS * float(np.finfo(dtype).eps) * float(np.sqrt(size)) * sigma1


def probed_error(B: Bidiagonal, sigma1: float, chance: float = CHANCE) -> SvdError:
    """What rounding moved singular values by: what the probes allow but for a part `chance` of their draws, the loss of
    orthogonality, and bisection."""
    kind = np.finfo(B.dtype)
    rest = loss(sigma1, max(B.shape), B.dtype) + 2 * float(kind.eps) * sigma1 + float(kind.smallest_subnormal)
    method = (
        f"measured: {PROBES} Gaussian probes through the reduction; {LOSS:.0f}·eps·√N·σ₁ for the loss of orthogonality"
    )
    return SvdError(B.error(chance) + rest, method, PROBED, chance)


def svd_error(B: Bidiagonal, sigma1: float) -> SvdError:
    """By the probes, or, where the customary bound is less, that one as an assumption, since four probes of a matrix of N
    columns bound an error by about √N times its size."""
    assumed, probed = tolerance(sigma1, max(B.shape), B.dtype), probed_error(B, sigma1)
    if probed.bound <= assumed:
        return probed
    return SvdError(
        assumed,
        f"assumed: 16·eps·√N·σ₁; at {PROBED} probes through the reduction rule out more than {probed.bound:.1e}",
        ASSUMED,
    )


@lru_cache(maxsize=8)
def probes(n: int, dtype: str) -> NDArray[Any]:
    """Zᵀ (4, n), Gaussian, the same every time: what is said of chance holds for matrices chosen without knowledge of them."""
    found: NDArray[Any] = np.random.default_rng(20).standard_normal((PROBES, n)).astype(dtype)
    return found
