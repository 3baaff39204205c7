"""The k leading singular triplets of anything with products, with measured residuals.

Block Golub–Kahan–Lanczos with full reorthogonalisation and thick restart (Golub & Kahan 1965; Baglama & Reichel
2005). V stays orthonormal, A·V = U·B holds to rounding, and the rest of Aᵀ·U is the residual of each triplet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from array_api_compat import array_namespace

from tightpass.errors import InputError
from tightpass.kernels.reference_svd import on_host
from tightpass.spectra.operand import Operand, check_operator, operand

Array = Any
BLOCK = 16
"""Columns of a product: enough for the memory's speed to be used, few enough to lose little of Krylov's."""
BASIS_BYTES = 2**31
LOOK = 1.25
"""The basis grows by this factor between two looks at its Ritz values."""
TOL = {"float32": 1e-5, "float64": 1e-8}
"""Residuals asked for where none are given, relative to σ₁."""


@dataclass(frozen=True)
class Leading:
    """The k leading singular triplets of A (M, N): U (M, k), S (k,), Vh (k, N).

    residuals   (k,) measured, √(‖Av − σu‖² + ‖Aᵀu − σv‖²): some singular value of A lies this close to each σ
    converged   whether all residuals are ≤ tol·σ₁
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
    if not 0 < tol < 1:
        raise InputError(f"tol: expected a number between 0 and 1, got {tol}")
    check_operator(op, seed)
    limit = 200 * k + 2000 if limit is None else limit
    check_positive("limit", limit)
    wide = op.shape[0] < op.shape[1]
    counted = _Counted(op.T if wide else op)  # the basis of the short side is complete first
    basis = _Basis(counted, k, min(block, *op.shape), np.random.default_rng(seed))
    while True:
        settled = basis.run(tol, limit)
        U, S, V = basis.ritz(k)
        skipped, complete = _look_for_more(counted, U, S, V, tol, seed + 1)
        if skipped is None or not settled:
            break
        basis.restart(skipped)
    R = residuals(counted, U, S, V)
    converged = bool(np.all(on_host(R) <= tol * float(S[0])))
    U, V = (V, U) if wide else (U, V)
    return Leading(
        op.back(U), op.back(S), op.back(V.T), op.back(R), converged, complete, counted.columns,
        f"block Golub–Kahan–Lanczos, blocks of {basis.width}, residuals ≤ {tol:.0e} σ₁ {'reached' if converged else 'asked'}",
    )  # fmt: skip


def check_rank(op: Operand, k: Any) -> None:
    """Raises InputError unless 1 ≤ k ≤ min(M, N)."""
    if not isinstance(k, int | np.integer) or isinstance(k, bool) or not 1 <= k <= min(op.shape):
        raise InputError(f"k: expected a whole number from 1 to {min(op.shape)}, got {k!r}")


def check_positive(name: str, value: Any) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name}: expected a whole number of at least 1, got {value!r}")


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
        afford = BASIS_BYTES // ((m + n) * op.dtype.itemsize) // width * width
        self.most = min(self.full, max(k + 2 * width, min(max(8 * k, k + 24 * width), afford)))
        self.V, self.U = (op.new(np.zeros((rows, self.most + width), dtype=op.dtype)) for rows in (n, m))
        self.B = np.zeros((self.most + width, self.most + width))
        self.q = 0
        self.xp = array_namespace(self.V)
        self._next(op.new(rng.standard_normal((n, width))))
        self.coupling = np.zeros((width, width))
        self.P, self.s, self.Qh = np.zeros((0, 0)), np.zeros(0), np.zeros((0, 0))

    def run(self, tol: float, limit: int) -> bool:
        """Grows until k triplets have residuals below tol·σ₁, or the limit is reached; True in the first case."""
        look = 0
        while True:
            self._grow()
            spent, crowded = self.op.columns >= limit, self.q + self.width > self.most
            if not (self.q == self.full or spent or crowded or self.q >= look):
                continue
            self._decompose()
            if self.q == self.full or self._settled(tol):
                return True
            if spent:
                return False
            look = max(self.k + 2 * self.width, int(LOOK * self.q))  # B's SVD costs q³
            if crowded:
                self._compress()

    def ritz(self, k: int) -> tuple[Array, Array, Array]:
        """U (m, k), S (k,), V (n, k) of the k leading triplets."""
        P, Q = self.op.new(self.P[:, :k]), self.op.new(self.Qh[:k].T.copy())
        return self.U[:, : self.q] @ P, self.op.new(self.s[:k]), self.V[:, : self.q] @ Q

    def restart(self, V: Array) -> None:
        """With the leading triplets, and new directions next."""
        self._compress(self.k)
        self._next(V)

    def _next(self, X: Array) -> Array:
        """The next block of V from X: orthonormal, and so to what is there. Returns R (X = V·C + V_next·R)."""
        width = min(self.width, X.shape[1], self.full - self.q)
        Q, R = _orthonormal(self.V[:, : self.q], X[:, :width], self.op, self.rng)
        self.V[:, self.q : self.q + width] = Q
        self.ahead = width
        return R

    def _grow(self) -> None:
        q, width = self.q, self.ahead
        W = self.op.matmat(self.V[:, q : q + width])
        U, R = _orthonormal(self.U[:, :q], W, self.op, self.rng)
        self.U[:, q : q + width] = U
        if q:
            self.B[:q, q : q + width] = on_host(self.U[:, :q].T @ W)
        self.B[q : q + width, q : q + width] = R
        X = self.op.rmatmat(U)
        self.q = q + width
        self.last = width
        if self.q < self.full:
            rest = self._next(X)
            self.coupling = rest

    def _decompose(self) -> None:
        """B = P·diag(s)·Qh, by torch, whose threads do the products as well."""
        parts = torch.linalg.svd(torch.from_numpy(self.B[: self.q, : self.q]))
        self.P, self.s, self.Qh = (part.numpy() for part in parts)

    def _settled(self, tol: float) -> bool:
        """By Aᵀ·U = V·Bᵀ + V_next·R·(last block)ᵀ; the residuals that are reported are measured afterwards."""
        if self.q < self.k:
            return False
        tail = self.P[self.q - self.last : self.q, : self.k]
        left = np.linalg.norm(self.coupling @ tail[: self.coupling.shape[1]], axis=0)
        return bool(np.all(left <= 0.5 * tol * self.s[0]))

    def _compress(self, keep: int | None = None) -> None:
        """Thick restart: the leading Ritz vectors stay, the next block follows them (Wu & Simon 2000)."""
        ahead = self.V[:, self.q : self.q + self.ahead] * 1
        if keep is None:
            keep = max(self.k, min(self.k + (self.most - self.k) // 2, self.most - 2 * self.width))
        keep = min(keep, self.q)
        self.U[:, :keep], _, self.V[:, :keep] = self.ritz(keep)
        self.B[:] = 0
        self.B[:keep, :keep] = np.diag(self.s[:keep])
        self.q = keep
        self.V[:, keep : keep + self.ahead] = ahead


def _orthonormal(basis: Array, X: Array, op: _Counted, rng: np.random.Generator) -> tuple[Array, Any]:
    """Q (·, w) orthonormal and orthogonal to `basis`, R (w, w) on the host with X = basis·C + Q·R.

    Directions that vanish are replaced by random ones, whose part of R is nothing.
    """
    xp = array_namespace(X)
    rest = X
    if basis.shape[1]:
        for _ in range(2):
            rest = rest - basis @ (basis.T @ rest)
    Q, R = xp.linalg.qr(rest)
    diagonal = np.abs(np.diagonal(on_host(R)))
    gone = diagonal <= 1e3 * float(np.finfo(op.dtype).eps) * float((X**2).sum()) ** 0.5
    if gone.any():
        fresh = op.new(rng.standard_normal(tuple(X.shape)))
        Q = xp.where(op.new(gone.astype(float))[None, :] > 0, fresh, Q)
        for _ in range(2):
            if basis.shape[1]:
                Q = Q - basis @ (basis.T @ Q)
            Q, _ = xp.linalg.qr(Q)
        R = Q.T @ rest
    return Q, on_host(R).astype(np.float64)


def _look_for_more(op: _Counted, U: Array, S: Array, V: Array, tol: float, seed: int) -> tuple[Array | None, str]:
    """Directions of a value above σ_k that was skipped (None if none was found), and what is known in words.

    Certain where the energy that is left, ‖A‖_F² − Σσ², is less than σ_k²; else by a fresh random start on what the
    triplets leave over.
    """
    k, smallest = len(S), float(S[-1])
    if k == min(op.shape):
        return None, "certain: these are all"
    energy = op.energy()
    if energy is not None:
        left = energy - float(np.sum(on_host(S).astype(np.float64) ** 2))
        if left < smallest**2 * (1 - 1e-3):
            return None, "certain: the energy that is left is below σ_k²"
    X = op.new(np.random.default_rng(seed).standard_normal((op.shape[1], 4)))
    xp = array_namespace(X)
    for _ in range(3):
        X = X - V @ (V.T @ X)
        X, _ = xp.linalg.qr(X)
        Y = op.matmat(X)
        Y = Y - U @ (U.T @ Y)
        X = op.rmatmat(Y)
    X = X - V @ (V.T @ X)
    X, _ = xp.linalg.qr(X)
    found = float(np.linalg.norm(on_host(op.matmat(X)), 2))
    if found > smallest + 10 * tol * float(S[0]):
        return X, f"not complete: a value of {found:.3e} was skipped"
    return None, "probed: a fresh random start found none above σ_k"
