"""All singular values of a source, verified; and the leading vectors.

Of a `Jacobian`, or of a shard on disk. Block-diagonal sources cost one small SVD a token, others one dense SVD.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tightpass.arrays import dtype_name, is_torch, on_host, squared_norm
from tightpass.confidence import tolerance
from tightpass.errors import VerificationError
from tightpass.kernels import native
from tightpass.spectra.batched import Factors, block_answers, largest
from tightpass.spectra.batched import work_of as work_of_blocks
from tightpass.spectra.choose import Route, choose, dense_bytes, gram_bytes
from tightpass.spectra.dense import BASIC, Answer, against_reference, by_two_stage, rounded, verified
from tightpass.spectra.device import shared
from tightpass.spectra.gram import gram_values
from tightpass.spectra.lapack import triplets
from tightpass.spectra.leading.krylov import svds
from tightpass.spectra.leading.krylov import work_of as work_of_svds
from tightpass.spectra.verify import SMALL, SvdError, check_values, work_of_checks
from tightpass.structure import BlockDiagonal, Source, Structure
from tightpass.work import Work, kept, passing

Matrix = NDArray[np.floating[Any]]
LAPACK = 9
"""Arrays of a matrix's size that its SVD with vectors takes, and the residuals."""
ROWS = 3
"""Float64 arrays of a token's rows on the way into the Gram matrix."""
WIDENED = 4096
"""Up to this size float32 data is decomposed in float64, which takes twice the time, seconds, and leaves no error to bound."""


@dataclass(frozen=True)
class Values:
    """All min(M, N) singular values, descending.

    blocks     token of each value, for block-diagonal sources
    route      how they were computed, and why so
    answer     the same with its evidence; of block-diagonal sources that of all blocks
    """

    values: Matrix
    blocks: NDArray[np.int64] | None
    route: str
    answer: Answer


@dataclass(frozen=True)
class Triplets:
    """k leading U (M, k), S (k,), Vh (k, N), residuals (k,) = √(‖Jv−σu‖² + ‖Jᵀu−σv‖²)."""

    U: Matrix
    S: Matrix
    Vh: Matrix
    residuals: Matrix


def work_of(
    structure: Structure,
    shape: tuple[int, int],
    block: tuple[int, int],
    dtype: Any,
    reading: Work,
    memory: int | None,
    threads: int,
) -> Work:
    """Of `singular_values` of a square matrix in blocks, which are read in panels."""
    route, size, number = choose(structure, shape, block, dtype, memory), max(shape), np.dtype(dtype).itemsize
    if route.batched:
        small = work_of_blocks(block, shape[0] // block[0], threads)
        return passing(reading.peak + small.peak, small.flops)
    square, whole = size**2, Work(8 / 3 * size**3)
    if route.name == "gram":
        return whole.then(passing(gram_bytes(shape) + ROWS * block[0] * size * 8 + reading.peak))
    assembled = kept(square * number).then(reading)
    if size <= SMALL:
        return whole.then(assembled, passing(square * number), work_of_checks(size)).dropped()
    if size <= WIDENED and number == 4:
        wide = whole.then(
            assembled.dropped(), passing(square * 12), kept(square * 8), passing(dense_bytes(shape, float))
        )
        return (wide if native.extension is not None else wide.then(work_of_checks(size))).dropped()
    if native.extension is None:
        return whole.then(assembled, passing(square * 8), work_of_checks(size)).dropped()
    return whole.then(assembled, passing(dense_bytes(shape, dtype) - square * number)).dropped()


def work_of_vectors(
    shape: tuple[int, int], block: tuple[int, int], itemsize: int, k: int, reading: Work, diagonal: bool
) -> Work:
    """Of `leading`, which leaves U and Vh."""
    if k == 0:
        return Work()
    found, size = kept(k * sum(shape) * itemsize), max(shape)
    if diagonal:
        few = found.then(found)  # by token, and in order
        return passing(reading.peak + LAPACK * block[0] * block[1] * itemsize).then(few.dropped(), found)
    assembled = kept(size**2 * itemsize).then(reading)
    if 10 * k < size and size > SMALL:
        return assembled.then(replace(work_of_svds(*shape, k, itemsize, Work()), flops=0.0)).dropped().then(found)
    return assembled.then(passing(LAPACK * size**2 * itemsize)).dropped().then(found)


def singular_values(source: Source, factors: Factors | None = None, memory: int | None = None) -> Values:
    """All singular values of a source. Raises VerificationError if no route can be verified.

    memory   bytes that a dense matrix may take; None: enough
    """
    if isinstance(source.structure, BlockDiagonal):
        return _of_blocks(source, factors or (lambda t: None))
    dtype = _dtype(source)
    route = choose(source.structure, source.shape, (source.d_out, source.d_in), dtype, memory)
    if route.name == "gram":
        return _of_gram(source, route)
    answer = _of_dense(source)
    return Values(answer.values, None, f"{answer.route}, dense: {route.reason}", answer)


def _dtype(source: Source) -> Any:
    """Of the blocks; reads one panel."""
    return np.dtype(dtype_name(next(iter(source.panels())).blocks.dtype))


def _of_dense(source: Source) -> Answer:
    """In place, since J is large; where that answer is not to be trusted, J is put together again for the next route."""
    size = max(source.shape)
    if size <= SMALL:
        return verified(on_host(assemble(source)), examined=against_reference)
    if size <= WIDENED and _dtype(source) == np.float32:
        return rounded(verified(on_host(assemble(source)).astype(np.float64)))
    if native.extension is None:
        return verified(assemble(source))
    try:
        return by_two_stage(assemble(source), overwrite=True)
    except VerificationError as error:
        try:
            return verified(assemble(source))
        except VerificationError as second:
            raise VerificationError(f"{second}; at first: {error}") from None


def _of_gram(source: Source, route: Route) -> Values:
    """By the float64 Gram matrix, a panel at a time."""

    found = gram_values(_whole_rows(source), source.shape[1])
    checks = (BASIC,)
    answer = Answer(found.values, "gram", found.error, checks)
    return Values(found.values, None, f"float64 Gram matrix: {route.reason}", answer)


def _whole_rows(source: Source) -> Iterator[tuple[Matrix, slice]]:
    """All columns of one output token after the other, of a source whose panels come in that order."""
    token = -1
    columns: list[tuple[int, Matrix]] = []
    for panel in source.panels():
        for t, s, block in zip(panel.rows, panel.columns, on_host(panel.blocks), strict=True):
            if t != token and columns:
                yield _beside_each_other(columns, source.d_in)
                columns = []
            token = t
            columns.append((s, block))
    if columns:
        yield _beside_each_other(columns, source.d_in)


def _beside_each_other(columns: list[tuple[int, Matrix]], width: int) -> tuple[Matrix, slice]:
    first, last = columns[0][0], columns[-1][0]
    return np.concatenate([block for _, block in columns], axis=1), slice(first * width, (last + 1) * width)


def _of_blocks(source: Source, factors: Factors) -> Values:
    count = source.shape[0] // source.d_out
    answers: list[Answer] = []
    tokens: list[int] = []
    energy = 0.0
    for panel in source.panels():
        answers += block_answers(panel.blocks, lambda t, at=panel.rows: factors(at[t]), count)  # type: ignore[misc]
        energy += squared_norm(on_host(panel.blocks))
        tokens += panel.rows
    merged = np.concatenate([answer.values for answer in answers])
    order = np.argsort(-merged, kind="stable")
    values = merged[order]
    check_values(values, energy, source.shape)
    route = choose(source.structure, source.shape, (source.d_out, source.d_in), merged.dtype)
    checks = Counter(check for answer in answers for check in answer.checks if check != BASIC)
    words = (f"each block, and all: {BASIC}", *(f"{number} of {count} blocks: {c}" for c, number in checks.items()))
    answer = Answer(values, str(route), largest([answer.error for answer in answers]), words)
    return Values(values, np.repeat(tokens, len(answers[0].values))[order], str(route), answer)


def cross_check(exact: Values) -> tuple[SvdError, tuple[str, ...]]:
    """A bound on the SVD's own error, and what was checked, in words."""
    return exact.answer.error, exact.answer.checks


def assemble(source: Source) -> Any:
    """The source as one array, NumPy's, or CuPy's where its blocks are on a GPU; zero outside of its structure."""
    J: Any = None
    for panel in source.panels():
        if J is None:
            tokens = (source.shape[0] // source.d_out, source.d_out, source.shape[1] // source.d_in, source.d_in)
            J = panel.blocks.new_zeros(tokens) if is_torch(panel.blocks) else np.zeros(tokens, panel.blocks.dtype)
        for t, s, block in zip(panel.rows, panel.columns, panel.blocks, strict=True):
            J[t, :, s] = block
    assert J is not None
    whole = J.reshape(source.shape)
    return shared(whole) if is_torch(whole) and whole.is_cuda else on_host(whole)


def leading(source: Source, exact: Values, k: int) -> Triplets:
    """The k leading singular triplets, their residuals measured.

    Block-diagonal: SVDs of only those blocks that hold the k values, each vector living on
    its own token. Dense: block Lanczos (`krylov`), or LAPACK where k is a large part of all.
    """
    k = min(k, len(exact.values))
    if exact.blocks is not None:
        return _leading_of_blocks(source, exact, k)
    return _leading_of_dense(on_host(assemble(source)), exact.values[:k])


def _leading_of_blocks(source: Source, exact: Values, k: int) -> Triplets:
    assert exact.blocks is not None
    wanted = exact.blocks[:k]
    counts = {int(t): int((wanted == t).sum()) for t in np.unique(wanted)}
    rows, columns = source.shape
    parts = []
    for panel in source.panels():
        for t, block in zip(panel.rows, panel.blocks, strict=True):
            if t in counts:
                A, k_t = on_host(block), counts[t]
                U, S, Vh = triplets(A)
                U, S, Vh = U[:, :k_t], S[:k_t], Vh[:k_t]
                parts.append((t, U.copy(), S, Vh.copy(), residual(A, U, S, Vh)))  # views would keep whole arrays
    dtype = exact.values.dtype
    left, right = np.zeros((rows, k), dtype), np.zeros((k, columns), dtype)
    S, residuals, at = np.zeros(k, dtype), np.zeros(k, dtype), 0
    for t, u, s, vh, apart in parts:
        here = slice(at, at + len(s))
        left[t * source.d_out : (t + 1) * source.d_out, here] = u
        right[here, t * source.d_in : (t + 1) * source.d_in] = vh
        S[here], residuals[here] = s, apart
        at += len(s)
    order = np.argsort(-S, kind="stable")
    return Triplets(left[:, order], S[order], right[order], residuals[order])


def _leading_of_dense(J: Matrix, expected: Matrix) -> Triplets:
    k = len(expected)
    if 10 * k < min(J.shape) and min(J.shape) > SMALL:
        tol = 1e-12 if J.dtype == np.float64 else 2e-6
        found = svds(J, k, tol=tol)
        apart = np.abs(found.S - expected).max()  # small residuals alone do not show that none was skipped
        if found.converged and apart <= 2 * tolerance(float(expected[0]), max(J.shape), J.dtype):
            return Triplets(found.U, found.S, found.Vh, found.residuals)
    U, S, Vh = triplets(J)
    U, S, Vh = U[:, :k], S[:k], Vh[:k]
    return Triplets(U, S, Vh, residual(J, U, S, Vh))


def residual(A: Matrix, U: Matrix, S: Matrix, Vh: Matrix) -> Matrix:
    """√(‖A v − σ u‖² + ‖Aᵀ u − σ v‖²) of each triplet."""
    right = np.linalg.norm(A @ Vh.T - U * S, axis=0)
    left = np.linalg.norm(A.T @ U - Vh.T * S, axis=0)
    return np.hypot(right, left)  # type: ignore[no-any-return]
