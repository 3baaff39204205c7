"""All singular values of one matrix, verified: by the two-stage route, and by LAPACK where that is absent or fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from tightpass import doors
from tightpass.arrays import all_finite, beside, dtype_name, is_cupy, on_host, squared_norm
from tightpass.confidence import CERTAIN
from tightpass.errors import InputError, VerificationError
from tightpass.kernels import native
from tightpass.spectra import device
from tightpass.spectra.lapack import gesdd, gesvd
from tightpass.spectra.twostage import Bidiagonal, svd_error, two_stage
from tightpass.spectra.verify import SvdError, check_dense, check_values, measured_error

Matrix = Any


@dataclass(frozen=True)
class Answer:
    """values (min(M, N),), descending, by `route`; `checks` in words, and how far a value may be off."""

    values: Any
    route: str
    error: SvdError
    checks: tuple[str, ...]


BASIC = "finite, non-negative, sorted, Σσ² = ‖J‖_F²"
REFERENCE = "every value against a reference of more precision"


Bound = Callable[[Bidiagonal, float], SvdError]
"""Of the two-stage route's error, from its bidiagonal matrix and σ₁."""


def by_two_stage(A: Matrix, overwrite: bool = False, threads: int | None = None, bound: Bound = svd_error) -> Answer:
    """The two-stage route. Raises VerificationError if its own evidence is against it."""
    values, B = two_stage(A, overwrite, threads=threads)
    spacing = float(np.finfo(B.dtype).smallest_subnormal) / B.scale
    check_values(values.astype(np.float64) / B.scale, B.energy, B.shape, B.dtype, spacing)
    probed = "the reduction by four random probes, energy and norms"
    placed = "every value, tail included, by Sturm counts on both sides"
    return Answer(values, "two-stage", bound(B, float(values[0])), (BASIC, probed, placed))


def by_lapack(driver: Callable[[Matrix], Matrix]) -> Callable[[Matrix], Answer]:
    """A driver of LAPACK's kind with a second look at the tail."""

    def route(A: Matrix) -> Answer:
        if not all_finite(A):
            raise VerificationError("the matrix has entries that are not finite")  # LAPACK would print it
        values = on_host(driver(A if driver is device.cusolver else on_host(A)))
        A = on_host(A)
        check_values(values, squared_norm(A), A.shape, A.dtype)
        error, checks = check_dense(A, values)
        return Answer(values, driver.__name__, error, (BASIC, *checks))

    return route


Routes = list[tuple[str, Callable[[Matrix], Answer]]]


def routes(A: Matrix, threads: int | None = None, bound: Bound = svd_error) -> Routes:
    """Routes in the order in which they are tried; on a GPU the faster first."""
    host: Routes = [("gesdd", by_lapack(gesdd)), ("gesvd", by_lapack(gesvd))]
    if is_cupy(A):
        own: Routes = [("two-stage", by_two_stage)]
        bare: list[Any] = [("two-stage", lambda sample: two_stage(sample)[0])]
        if max(A.shape) <= device.LIMIT_32_BIT:
            own.append(("cuSOLVER", by_lapack(device.cusolver)))
            bare.append(("cuSOLVER", device.cusolver))
        best = device.fastest_dense(A, bare)
        return sorted(own, key=lambda route: route[0] != best) + host
    if native.extension is None:
        return host
    return [("two-stage", partial(by_two_stage, threads=threads, bound=bound)), *host]


def as_it_is(A: Matrix, answer: Answer) -> Answer:
    return answer


def against_reference(A: Matrix, answer: Answer) -> Answer:
    """With the error measured, of a small matrix. Raises VerificationError where a value is off beyond rounding."""
    if answer.error.confidence == CERTAIN:
        return answer  # it has been already
    return replace(answer, error=measured_error(A, answer.values), checks=(*answer.checks, REFERENCE))


def rounded(answer: Answer) -> Answer:
    """To float32, of a float32 matrix that was decomposed in float64: what that gets wrong is nothing beside the rounding."""
    rounding = float(np.finfo(np.float32).eps) / 2 * float(answer.values[0])
    method = f"float64 SVD of the float32 matrix, values rounded; {answer.error.method}"
    error = replace(answer.error, bound=answer.error.bound + rounding, method=method)
    return replace(answer, values=answer.values.astype(np.float32), error=error, route=f"{answer.route} in float64")


def verified(
    A: Matrix,
    threads: int | None = None,
    examined: Callable[[Matrix, Answer], Answer] = as_it_is,
    bound: Bound = svd_error,
) -> Answer:
    """By the first route whose answer passes its checks, and the examination where one is given.

    Raises VerificationError with what each said if none does.
    """
    problems = []
    for name, route in routes(A, threads, bound):
        try:
            return examined(A, route(A))
        except (np.linalg.LinAlgError, VerificationError) as error:
            problems.append(f"{name}: {error}")
    raise VerificationError("no SVD of this matrix can be trusted: " + "; ".join(problems))


def check_matrix(A: Matrix, name: str = "A") -> Matrix:
    """A itself, as a plain array where it is of a subclass of NumPy's (memmap, matrix), which share its memory.

    Raises InputError for anything but a real float32 or float64 matrix with entries.
    """
    if isinstance(A, torch.Tensor) and A.is_nested:
        raise InputError(f"{name}: expected a plain dense array, got a nested one")
    shape, dtype = getattr(A, "shape", None), getattr(A, "dtype", None)
    if shape is None or dtype is None or not (isinstance(A, np.ndarray | torch.Tensor) or is_cupy(A)):
        raise InputError(f"{name}: expected a NumPy, torch or CuPy array, got {type(A).__name__}")
    if len(shape) != 2:
        raise InputError(f"{name}: expected a matrix, got shape {tuple(shape)}")
    if 0 in shape:
        raise InputError(f"{name}: expected at least one row and one column, got shape {tuple(shape)}")
    if isinstance(A, np.ma.MaskedArray) or (isinstance(A, torch.Tensor) and (A.layout != torch.strided or A.is_meta)):
        raise InputError(f"{name}: expected a plain dense array, got a masked, sparse or meta one")
    kind = dtype_name(dtype)
    if kind not in ("float32", "float64"):
        hint = "its real and imaginary parts have other singular values" if "complex" in kind else "convert it first"
        raise InputError(f"{name}: expected float32 or float64, got {kind}; {hint}")
    return A.view(np.ndarray) if isinstance(A, np.ndarray) else A


def svdvals(A: Matrix, overwrite: bool = False) -> Matrix:
    """All singular values of A (M, N), descending, verified; the same kind of array as A, on its device (a plain one for
    NumPy's subclasses).

    A           NumPy, torch or CuPy; float32 or float64
    overwrite   A may be destroyed: saves the copy where rows are contiguous and M ≥ N. No second route then

    Raises InputError for what is not a finite real matrix, VerificationError if no route's answer passes its checks.
    """
    A, overwrite = check_matrix(A), doors.flag("overwrite", overwrite)
    if isinstance(A, torch.Tensor):
        A = A.detach().resolve_neg()
    own = device.shared(A) if isinstance(A, torch.Tensor) and A.is_cuda else A
    try:
        if is_cupy(own):
            answer = device.or_on_host(verified, own)
        elif overwrite and native.extension is not None:
            answer = by_two_stage(own, overwrite=True)
        else:
            answer = verified(own)
    except VerificationError:
        if not all_finite(own):
            raise InputError("A: expected finite entries, got NaN or infinity") from None
        raise
    if isinstance(A, torch.Tensor):
        return torch.from_numpy(np.ascontiguousarray(on_host(answer.values))).to(A.device)
    return beside(on_host(answer.values), own) if is_cupy(own) else answer.values
