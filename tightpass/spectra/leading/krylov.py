"""The k leading singular triplets of anything with products, with measured residuals.

Block Golub–Kahan–Lanczos with full reorthogonalisation and thick restart (Golub & Kahan 1965; Baglama & Reichel
2005). V stays orthonormal, A·V = U·B holds to rounding, and the rest of Aᵀ·U is the residual of each triplet.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from tightpass import doors
from tightpass.arrays import on_host
from tightpass.confidence import allowed_energy
from tightpass.errors import InputError
from tightpass.spectra.lapack import triplets
from tightpass.spectra.leading.operand import Operand, adjoint_times, check_operator, operand, scaled, times
from tightpass.work import Work

Array = Any
BLOCK = 16
"""Columns of a product: enough for the memory's speed to be used, few enough to lose little of Krylov's."""
BASIS_BYTES = 2**31
COLUMNS = 14.0
INNER = 6
"""Matrices of the basis' size, (q, q) float64: B, its decomposition and what that takes."""
BESIDE = 7
"""Arrays of k columns of one side at the end: triplets, products, and their differences."""
PROBING = 5
"""Blocks that a fresh start grows by, to see whether a value was skipped."""
SHAKY = 0.05
"""What is left of a column, relative to the column, below which it is not orthogonal to working precision."""
LOOK = 1.5
"""The basis grows by at most this factor between two looks at its Ritz values, which cost the cube of its size."""
TOL = {"float32": 1e-5, "float64": 1e-8}
"""Residuals asked for where none are given, relative to σ₁."""


@dataclass(frozen=True)
class Leading:
    """The k leading singular triplets of A (M, N): U (M, k), S (k,), Vh (k, N).

    residuals   (k,) measured, √(‖Av − σu‖² + ‖Aᵀu − σv‖²): some singular value of A lies this close to each σ
    converged   whether all residuals are ≤ tol·σ₁, and no value is known to be skipped
    complete    what is known of values that were skipped: "certain: .." or "probed: .."
    products    columns that A or Aᵀ was applied to
    method      in words
    """

    U: Array
    S: Array
    Vh: Array
    residuals: Array
    converged: bool
    complete: str
    products: int
    method: str

    def __repr__(self) -> str:
        state = "converged" if self.converged else "not converged"
        return f"Leading({len(self.S)} triplets, {state}, worst residual {float(self.residuals.max()):.1e}; {self.complete})"


def svds(
    A: Any, k: int, tol: float | None = None, block: int = BLOCK, limit: int | None = None, seed: int = 0
) -> Leading:
    """The k leading singular triplets, verified.

    A       NumPy, torch or CuPy matrix, a Jacobian, or an operator with matmat and rmatmat; float32 or float64
    tol     residuals are at most this times σ₁; 1e-8 for float64, 1e-5 for float32 if left out
    limit   columns that A and Aᵀ are applied to at most (200·k + 2000 if left out); then `converged` is False and the
            result so far comes with its residuals

    Raises InputError for an operator that is not linear, not the same twice, or whose adjoint is wrong.
    """
    op = operand(A)
    check_rank(op, k)
    check_positive("block", block)
    tol = TOL[str(np.dtype(op.dtype))] if tol is None else tol
    if not isinstance(tol, Real) or isinstance(tol, bool) or not 0 < tol < 1:
        raise InputError(f"tol: expected a number between 0 and 1, got {doors.shown(tol)}")
    tol, k, block, seed = float(tol), int(k), int(block), doors.seed(seed)
    op, scale = scaled(op, seed)
    check_operator(op, seed)
    limit = 200 * k + 2000 if limit is None else limit
    check_positive("limit", limit)
    wide = op.shape[0] < op.shape[1]
    counted = _Counted(op.T if wide else op)  # the basis of the short side is complete first
    basis = _Basis(counted, k, min(block, *op.shape), np.random.default_rng(seed))
    while True:
        settled = basis.run(tol, limit)
        U, S, V = basis.ritz(k)
        complete = _what_is_certain(counted, S, float(np.sum(basis.s[k:] ** 2)))
        if complete is None and basis.is_whole:
            complete = "certain: the basis spans everything"
        if complete is not None or not settled:
            break
        if not basis.finds_more(tol):
            complete = "probed: a fresh random start found none above σ_k"
            break
    R = residuals(counted, U, S, V)
    converged = settled and bool(np.all(on_host(R) <= tol * float(S[0])))
    U, V = (V, U) if wide else (U, V)
    if scale > 1 and float(S[0]) > float(np.finfo(op.dtype).max) / scale:  # below 1 the quotient itself may overflow
        raise InputError(f"σ₁ is beyond the range of {np.dtype(op.dtype)}; scale the matrix")
    return Leading(
        op.back(U), op.back(S * scale), op.back(V.T), op.back(R * scale), converged, complete or "not looked for", counted.columns,
        f"block Golub–Kahan–Lanczos, blocks of {basis.width}, residuals ≤ {tol:.0e} σ₁ {'reached' if converged else 'asked'}",
    )  # fmt: skip


def basis_columns(m: int, n: int, k: int, width: int, itemsize: int) -> int:
    """Columns that a basis of both sides has at most, without those of the next block."""
    afford = BASIS_BYTES // ((m + n) * itemsize) // width * width
    return min(m, n, max(k + 2 * width, min(max(8 * k, k + 24 * width), afford)))


def work_of(m: int, n: int, k: int, itemsize: int, product: Work, width: int = BLOCK) -> Work:
    """Of `svds`, which leaves k triplets. `product`: of one with as many columns as k, or a block.

    Of the basis about half is written anew where it is compressed, beside the block that follows; k triplets and their products
    are there beside it in the end. About `COLUMNS` columns are multiplied for each value.
    """
    width = min(width, m, n)
    k = min(k, m, n)
    both, most = (m + n) * itemsize, basis_columns(m, n, k, width, itemsize)
    held = (most + width) * both + INNER * most**2 * 8
    beside = max((_kept_of(most, k, width) + width) * both, (BESIDE * max(k, width) * both) // 2 + product.peak)
    return Work(COLUMNS * k * product.flops, held + beside, k * both)


def _kept_of(most: int, k: int, width: int) -> int:
    """Ritz vectors that stay where a basis of so many columns is compressed."""
    return max(k, min(k + (most - k) // 2, most - 2 * width))


def check_rank(op: Operand, k: Any) -> None:
    """Raises InputError unless 1 ≤ k ≤ min(M, N)."""
    if not isinstance(k, int | np.integer) or isinstance(k, bool) or not 1 <= k <= min(op.shape):
        raise InputError(f"k: expected a whole number from 1 to {min(op.shape)}, got {doors.shown(k)}")


def check_positive(name: str, value: Any) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name}: expected a whole number of at least 1, got {doors.shown(value)}")


def residuals(op: Any, U: Array, S: Array, V: Array) -> Array:
    """√(‖Av − σu‖² + ‖Aᵀu − σv‖²) of each triplet, by products."""
    right, left = op.matmat(V) - U * S, op.rmatmat(U) - V * S
    return ((right**2).sum(0) + (left**2).sum(0)) ** 0.5


class _Counted:
    """An operand whose columns are counted."""

    def __init__(self, op: Operand) -> None:
        self.op, self.shape, self.dtype, self.new, self.energy = op, op.shape, op.dtype, op.new, op.energy
        self.columns = 0

    def matmat(self, X: Array) -> Array:
        self.columns += X.shape[1]
        return self.op.matmat(X)

    def rmatmat(self, Y: Array) -> Array:
        self.columns += Y.shape[1]
        return self.op.rmatmat(Y)


class _Basis:
    """Orthonormal V (n, q) and U (m, q) with A·V = U·B, and the block of V that comes next."""

    def __init__(self, op: _Counted, k: int, width: int, rng: np.random.Generator) -> None:
        (m, n), self.op, self.k, self.width, self.rng = op.shape, op, k, width, rng
        self.full = min(m, n)
        self.most = basis_columns(m, n, k, width, op.dtype.itemsize)
        self.V, self.U = (op.new(np.zeros((rows, self.most + width), dtype=op.dtype)) for rows in (n, m))
        self.B = np.zeros((self.most + width, self.most + width))
        self.q = self.near = 0  # the columns of V and U that the next block is coupled to start at `near`
        self._next(op.new(rng.standard_normal((n, width))))
        self.coupling = np.zeros((width, width))
        self.P, self.s, self.Qh = np.zeros((0, 0)), np.zeros(0), np.zeros((0, 0))

    @property
    def is_whole(self) -> bool:
        """Whether no direction is left that a fresh start could add."""
        return self.q == self.full

    def run(self, tol: float, limit: int) -> bool:
        """Grows until k triplets have residuals below tol·σ₁, or the limit is reached; True in the first case."""
        look, seen = self.k + 4 * self.width, []
        while True:
            self._grow()
            spent, crowded = self.op.columns >= limit, self.q + self.ahead > self.most
            if not (self.q == self.full or spent or crowded or self.q >= look):
                continue
            self._decompose()
            worst = self._worst() / tol
            if self.q == self.full or worst <= 0.5:
                return True
            if spent:
                return False
            seen.append((self.q, float(np.log(max(2 * worst, 1.0)))))
            ahead = self._ahead(seen)
            if crowded:
                self._compress()
                seen = []
            look = self.q + ahead

    def _ahead(self, seen: list[tuple[int, float]]) -> int:
        """Columns until the next look, from (q, logarithm of what residuals must still fall by): they fall ever faster
        (Saad 1980), and to look is cheaper than to go too far."""
        most = int((LOOK - 1) * self.q)
        falls = [(a[1] - b[1]) / (b[0] - a[0]) for a, b in pairwise(seen[-3:]) if b[0] > a[0]]
        if not falls or min(falls) <= 0:
            return min(most, 4 * self.width)
        fall = falls[-1] * max(1.0, falls[-1] / falls[0])
        return min(most, max(self.width, int(0.8 * seen[-1][1] / fall)))

    def ritz(self, k: int) -> tuple[Array, Array, Array]:
        """U (m, k), S (k,), V (n, k) of the k leading triplets."""
        P, Q = self.op.new(self.P[:, :k]), self.op.new(self.Qh[:k].T.copy())
        return self.U[:, : self.q] @ P, self.op.new(self.s[:k]), self.V[:, : self.q] @ Q

    def finds_more(self, tol: float) -> bool:
        """Whether a fresh random block, on top of the k triplets, raises one of them: a value had been skipped.

        Some steps of Lanczos, not of the power method: copies of one value beyond the width of a block hide over a
        rest that falls slowly.
        """
        known = self.s[: self.k].copy()
        self._compress(self.k)
        self._next(self.op.new(self.rng.standard_normal((self.op.shape[1], self.width))))
        for _ in range(PROBING):
            if self.q == self.full or self.q + self.ahead > self.most:
                break
            self._grow()
        self._decompose()
        return bool(np.any(self.s[: self.k] > known + 10 * tol * known[0]))

    def _next(self, X: Array) -> Array:
        """The next block of V from X: orthonormal, and so to what is there. Returns R (X = V·C + V_next·R)."""
        width = min(self.width, X.shape[1], self.full - self.q)
        Q, _, R = _orthonormal(self.V[:, : self.q], X[:, :width], self.near, self.op, self.rng)
        self.V[:, self.q : self.q + width] = Q
        self.ahead = width
        return R

    def _grow(self) -> None:
        q, width = self.q, self.ahead
        U, C, R = _orthonormal(self.U[:, :q], self.op.matmat(self.V[:, q : q + width]), self.near, self.op, self.rng)
        self.near = q
        self.U[:, q : q + width] = U
        self.B[:q, q : q + width] = C
        self.B[q : q + width, q : q + width] = R
        X = self.op.rmatmat(U)
        self.q = q + width
        self.last = width
        if self.q < self.full:
            self.coupling = self._next(X)

    def _decompose(self) -> None:
        """B = P·diag(s)·Qh."""
        self.P, self.s, self.Qh = triplets(self.B[: self.q, : self.q])

    def _worst(self) -> float:
        """The largest residual relative to σ₁, by Aᵀ·U = V·Bᵀ + V_next·R·(last block)ᵀ; those that are reported are
        measured afterwards."""
        if self.q < self.k:
            return float("inf")
        tail = self.P[self.q - self.last : self.q, : self.k]
        left = np.linalg.norm(self.coupling @ tail[: self.coupling.shape[1]], axis=0)
        return float(left.max() / self.s[0]) if self.s[0] > 0 else 0.0

    def _compress(self, keep: int | None = None) -> None:
        """Thick restart: the leading Ritz vectors stay, the next block follows them (Wu & Simon 2000)."""
        ahead = self.V[:, self.q : self.q + self.ahead] * 1
        if keep is None:
            keep = _kept_of(self.most, self.k, self.width)
        keep = min(keep, self.q)
        self.U[:, :keep], _, self.V[:, :keep] = self.ritz(keep)
        self.B[:] = 0
        self.B[:keep, :keep] = np.diag(self.s[:keep])
        self.q, self.near = keep, 0
        self.V[:, keep : keep + self.ahead] = ahead


def _orthonormal(basis: Array, X: Array, near: int, op: _Counted, rng: np.random.Generator) -> tuple[Array, Any, Any]:
    """Q (·, w) orthonormal and orthogonal to `basis` (·, q), and C (q, w), R (w, w) on the host with X = basis·C + Q·R.

    Directions that vanish are replaced by random ones, whose part of R is nothing; where little of a column is left, its
    rounding shows, and the block is made orthogonal once more.
    """
    xp = array_namespace(X)
    rest, C = _project_out(basis, X, near)
    Q, R = xp.linalg.qr(rest)
    R = on_host(R).astype(np.float64)
    pivots, columns = np.abs(np.diagonal(R)), on_host((X**2).sum(0)) ** 0.5
    if np.all(pivots > SHAKY * columns):
        return Q, C, R
    gone = pivots <= 30 * float(np.finfo(op.dtype).eps) * float(np.linalg.norm(columns))
    fresh = op.new(rng.standard_normal(tuple(X.shape)))
    Q = xp.where(op.new(gone.astype(float))[None, :] > 0, fresh, Q)
    for _ in range(2):  # random columns may leave little of those after them
        Q, _ = xp.linalg.qr(_project_out(basis, Q, 0)[0])
    return Q, C, on_host(adjoint_times(Q, rest)).astype(np.float64)


def _project_out(basis: Array, X: Array, near: int) -> tuple[Array, Any]:
    """X − basis·C and C. Twice: after once, what the basis lacks in orthogonality would grow with each block. The first
    time only the columns from `near` on, which have all of X's part but rounding."""
    C = np.zeros((basis.shape[1], X.shape[1]))
    for first in (near, 0) if basis.shape[1] else ():
        part = adjoint_times(basis[:, first:], X)
        X = X - times(basis[:, first:], part)
        C[first:] += on_host(part)
    return X, C


def _what_is_certain(op: _Counted, S: Array, seen: float) -> str | None:
    """In words, where nothing above σ_k can have been skipped: all values are there, or ‖A‖_F² − Σσ² is less than σ_k²,
    rounding allowed for. `seen` is the part of what is left that Ritz values show already: with much of it there is no
    use in adding ‖A‖_F² up.
    """
    if len(S) == min(op.shape):
        return "certain: these are all"
    squares = on_host(S).astype(np.float64) ** 2
    rounding = allowed_energy(max(op.shape), op.dtype)
    if seen >= squares[-1] or squares.sum() * rounding >= squares[-1] or (energy := op.energy()) is None:
        return None
    left = max(energy - float(squares.sum()), 0.0) + rounding * energy  # it may be rounded, too
    return "certain: the energy that is left is below σ_k²" if left < squares[-1] else None
