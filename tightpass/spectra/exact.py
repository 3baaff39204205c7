"""All singular values by LAPACK, verified; and the leading vectors.

A *source* is anything with `structure`, `shape`, `d_out`, `d_in` and `panels()`: a `Jacobian`, or a
shard on disk. Block-diagonal sources cost one small SVD a token, others one dense SVD.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import get_lapack_funcs
from scipy.sparse.linalg import svds

from tightpass.errors import VerificationError
from tightpass.spectra.threads import one_per_core
from tightpass.spectra.verify import (
    SvdError,
    check_dense,
    check_values,
    measured_error,
    squared_norm,
    tolerance,
)
from tightpass.structure import BlockDiagonal, Structure

Matrix = NDArray[np.floating[Any]]
SAMPLED_BLOCKS = 6
CANCELLATION = 4.0
"""Factors are used while ‖C‖_F·‖B‖_F is at most this many times √n·‖A‖_F."""
Factors = Callable[[int], tuple[Matrix, Matrix] | None]
"""C (n, d_out) and B (n, d_in) with block (t, t) = CᵀB of rank n at most, where known (`Jacobian.factors`)."""


class Source(Protocol):
    """What a decomposition needs of a matrix in blocks."""

    @property
    def structure(self) -> Structure: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def d_out(self) -> int: ...
    @property
    def d_in(self) -> int: ...
    def panels(self) -> Iterator[Any]: ...


@dataclass(frozen=True)
class Values:
    """All min(M, N) singular values, descending.

    blocks     token of each value, for block-diagonal sources
    sample     matrices that were decomposed, with their values, for `cross_check`
    """

    values: Matrix
    blocks: NDArray[np.int64] | None
    sample: list[tuple[Matrix, Matrix]]


@dataclass(frozen=True)
class Triplets:
    """k leading U (M, k), S (k,), Vh (k, N), residuals (k,) = √(‖Jv−σu‖² + ‖Jᵀu−σv‖²)."""

    U: Matrix
    S: Matrix
    Vh: Matrix
    residuals: Matrix


def gesdd(A: Matrix) -> Matrix:
    """Singular values by divide and conquer's values-only path (dqds)."""
    return np.linalg.svd(A, compute_uv=False)


def gesvd(A: Matrix) -> Matrix:
    """Singular values by QR iteration: slower, and converges where gesdd fails on repeated values."""
    from scipy.linalg import svd

    return svd(A, compute_uv=False, lapack_driver="gesvd", check_finite=False)  # type: ignore[no-any-return]


DRIVERS: tuple[Callable[[Matrix], Matrix], ...] = (gesdd, gesvd)


def verified_values(A: Matrix) -> Matrix:
    """Singular values of one matrix by the first driver whose answer passes `check_values`.

    Raises VerificationError with what each driver answered if none does.
    """
    problems = []
    for driver in DRIVERS:
        try:
            values = driver(A)
            check_values(values, squared_norm(A), A.shape)
            return values
        except (np.linalg.LinAlgError, VerificationError) as error:
            problems.append(f"{driver.__name__}: {error}")
    raise VerificationError("no SVD of this matrix can be trusted: " + "; ".join(problems))


def factored_values(C: Matrix, B: Matrix) -> Matrix:
    """Singular values of A = CᵀB for C (n, M) and B (n, N) with n ≤ min(M, N): those of the n × n core
    R_C·R_Bᵀ from QR of both factors, and min(M, N) − n exact zeros. Raises as `verified_values` does."""
    n, size = len(C), min(C.shape[1], B.shape[1])
    values = np.zeros(size, dtype=C.dtype)
    if n:
        values[:n] = verified_values(_triangle(C) @ _triangle(B).T)
    return values


def _triangle(F: Matrix) -> Matrix:
    """R (n, n) of the QR factorisation of Fᵀ, F (n, m) with n ≤ m. LAPACK's own: twice as fast as NumPy's door to it."""
    (geqrf,) = get_lapack_funcs(("geqrf",), (F,))
    factored, _, _, info = geqrf(F.T, lwork=64 * len(F))
    if info != 0:
        raise np.linalg.LinAlgError(f"geqrf: argument {-info} is wrong")
    return np.triu(factored[: len(F)])


def _block_values(A: Matrix, pair: tuple[Matrix, Matrix] | None) -> Matrix:
    """By the factors where there are some, they do not cancel, and their answer fits the block that was written.

    The core's rounding is relative to ‖C‖·‖B‖, which is about √n·‖A‖_F unless terms of CᵀB cancel.
    """
    if pair is not None and np.linalg.norm(pair[0]) * np.linalg.norm(pair[1]) <= CANCELLATION * np.sqrt(
        len(pair[0]) * squared_norm(A)
    ):
        try:
            values = factored_values(*pair)
            check_values(values, squared_norm(A), A.shape)
            return values
        except VerificationError:
            pass
    return verified_values(A)


def singular_values(source: Source, factors: Factors | None = None) -> Values:
    """All singular values of a source. Raises VerificationError if no route can be verified."""
    if isinstance(source.structure, BlockDiagonal):
        return _of_blocks(source, factors or (lambda t: None))
    return _of_dense(assemble(source))


def _of_blocks(source: Source, factors: Factors) -> Values:
    values: list[Matrix] = []
    tokens: list[int] = []
    energy, sample = 0.0, _Sample(SAMPLED_BLOCKS)
    for panel in source.panels():
        blocks = panel.blocks.cpu().numpy()
        found = one_per_core(
            lambda job: _block_values(job[1], factors(job[0])), list(zip(panel.rows, blocks, strict=True))
        )
        energy += squared_norm(blocks)
        values += found
        tokens += panel.rows
        for block, sigma in zip(blocks, found, strict=True):
            sample.offer(block, sigma)
    check_values(np.sort(np.concatenate(values))[::-1], energy, source.shape)
    merged = np.concatenate(values)
    order = np.argsort(-merged, kind="stable")
    return Values(merged[order], np.repeat(tokens, len(values[0]))[order], sample.chosen)


def cross_check(exact: Values) -> tuple[SvdError, tuple[str, ...]]:
    """The tail of the spectrum by a second way, and a bound on the SVD's own error.

    Returns the bound and what was checked, in words. Raises VerificationError on a contradiction.
    """
    basic = "finite, non-negative, sorted, Σσ² = ‖J‖_F²"
    if exact.blocks is None:
        error, checks = check_dense(*exact.sample[0])
        return error, (basic, *checks)
    probed = f"{len(exact.sample)} blocks: every value, tail included, against an SVD with vectors"
    return measured_error(exact.sample), (f"each block, and all: {basic}", probed)


class _Sample:
    """The block of the largest σ₁, and others spread over the stream, none twice."""

    def __init__(self, size: int) -> None:
        self.size, self.seen = size, 0
        self.top: tuple[int, Matrix, Matrix] | None = None
        self.others: list[tuple[int, Matrix, Matrix]] = []
        self.rng = np.random.default_rng(0)

    def offer(self, block: Matrix, sigma: Matrix) -> None:
        """Reservoir sampling (Vitter 1985), beside the running maximum."""
        number, self.seen = self.seen, self.seen + 1
        if self.top is None or sigma[0] > self.top[2][0]:
            self.top = (number, block.copy(), sigma)
        if len(self.others) < self.size:
            self.others.append((number, block.copy(), sigma))
        elif (slot := int(self.rng.integers(self.seen))) < self.size:
            self.others[slot] = (number, block.copy(), sigma)

    @property
    def chosen(self) -> list[tuple[Matrix, Matrix]]:
        assert self.top is not None
        others = [entry for entry in self.others if entry[0] != self.top[0]]
        return [(block, sigma) for _, block, sigma in [self.top, *others[: self.size - 1]]]


def assemble(source: Source) -> Matrix:
    """The source as one array, blocks outside of its structure exactly zero."""
    J: Matrix | None = None
    for panel in source.panels():
        blocks = panel.blocks.cpu().numpy()
        if J is None:
            J = np.zeros(source.shape, dtype=blocks.dtype)
        for t, s, block in zip(panel.rows, panel.columns, blocks, strict=True):
            J[t * source.d_out : (t + 1) * source.d_out, s * source.d_in : (s + 1) * source.d_in] = block
    assert J is not None
    return J


def _of_dense(J: Matrix) -> Values:
    values = verified_values(J)
    return Values(values, None, [(J, values)])


def leading(source: Source, exact: Values, k: int) -> Triplets:
    """The k leading singular triplets, their residuals measured.

    Block-diagonal: SVDs of only those blocks that hold the k values, each vector living on
    its own token. Dense: PROPACK (Larsen 1998), or LAPACK where k is large or PROPACK's
    residuals exceed 1e-10 σ₁ (float64; 1e-4 in float32).
    """
    k = min(k, len(exact.values))
    if exact.blocks is not None:
        return _leading_of_blocks(source, exact, k)
    return _leading_of_dense(exact.sample[0][0], exact.values[:k])


def _leading_of_blocks(source: Source, exact: Values, k: int) -> Triplets:
    assert exact.blocks is not None
    wanted = exact.blocks[:k]
    counts = {int(t): int((wanted == t).sum()) for t in np.unique(wanted)}
    rows, columns = source.shape
    parts = []
    for panel in source.panels():
        for t, block in zip(panel.rows, panel.blocks, strict=True):
            if t in counts:
                A = block.cpu().numpy()
                U, S, Vh = np.linalg.svd(A, full_matrices=False)
                parts.append((t, A, U[:, : counts[t]], S[: counts[t]], Vh[: counts[t]]))
    dtype = exact.values.dtype
    left, right = np.zeros((rows, k), dtype), np.zeros((k, columns), dtype)
    S, residuals, at = np.zeros(k, dtype), np.zeros(k, dtype), 0
    for t, A, u, s, vh in parts:
        here = slice(at, at + len(s))
        left[t * source.d_out : (t + 1) * source.d_out, here] = u
        right[here, t * source.d_in : (t + 1) * source.d_in] = vh
        S[here], residuals[here] = s, residual(A, u, s, vh)
        at += len(s)
    order = np.argsort(-S, kind="stable")
    return Triplets(left[:, order], S[order], right[order], residuals[order])


def _leading_of_dense(J: Matrix, expected: Matrix) -> Triplets:
    k = len(expected)
    allowed = 1e-10 if J.dtype == np.float64 else 1e-4
    if 10 * k < min(J.shape):
        found = _propack(J, k)
        if found is not None and np.all(found.residuals <= allowed * expected[0]):
            apart = np.abs(found.S - expected).max()  # small residuals alone do not show that none was skipped
            if apart <= 2 * tolerance(float(expected[0]), max(J.shape), J.dtype):
                return found
    U, S, Vh = np.linalg.svd(J, full_matrices=False)
    U, S, Vh = U[:, :k], S[:k], Vh[:k]
    return Triplets(U, S, Vh, residual(J, U, S, Vh))


def _propack(J: Matrix, k: int) -> Triplets | None:
    """Leading triplets by Lanczos bidiagonalisation; None if it does not converge."""
    tol = 1e-6 if J.dtype == np.float64 else 1e-3  # SciPy squares it
    try:
        U, S, Vh = svds(J, k, solver="propack", tol=tol, maxiter=20 * k + 200, rng=np.random.default_rng(0))
    except np.linalg.LinAlgError:
        return None
    order = np.argsort(-S)
    U, S, Vh = U[:, order], S[order], Vh[order]
    return Triplets(U, S, Vh, residual(J, U, S, Vh))


def residual(A: Matrix, U: Matrix, S: Matrix, Vh: Matrix) -> Matrix:
    """√(‖A v − σ u‖² + ‖Aᵀ u − σ v‖²) of each triplet."""
    right = np.linalg.norm(A @ Vh.T - U * S, axis=0)
    left = np.linalg.norm(A.T @ U - Vh.T * S, axis=0)
    return np.hypot(right, left)  # type: ignore[no-any-return]
