"""Anything with products, as the Krylov routes use it: columns in, columns out, in one array library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from tightpass.arrays import dtype_name, is_cupy, squared_norm
from tightpass.confidence import ROUNDINGS
from tightpass.errors import InputError, TightpassError
from tightpass.kernels import native, products
from tightpass.spectra.dense import check_matrix

Array = Any


@dataclass(frozen=True)
class Operand:
    """A (M, N) through `matmat` (N, k) -> (M, k) and `rmatmat` (M, k) -> (N, k).

    new       a NumPy array -> one of the library, precision and device of the products
    back      the same the other way, into the kind of array that the caller gave
    energy    ‖A‖_F², where it is known at no great cost
    matmat_rounding, rmatmat_rounding    ‖change‖_F that rounding inside makes to A·X, or Aᵀ·Y; 0 for matrices, where it is
              as large as what comes out, and for operators, which do not know
    """

    shape: tuple[int, int]
    dtype: Any
    matmat: Callable[[Array], Array]
    rmatmat: Callable[[Array], Array]
    new: Callable[[Array], Array]
    back: Callable[[Array], Array]
    energy: Callable[[], float | None]
    matmat_rounding: Callable[[Array], float] = lambda X: 0.0
    rmatmat_rounding: Callable[[Array], float] = lambda Y: 0.0

    @property
    def T(self) -> Operand:
        return replace(
            self, shape=self.shape[::-1], matmat=self.rmatmat, rmatmat=self.matmat,
            matmat_rounding=self.rmatmat_rounding, rmatmat_rounding=self.matmat_rounding,
        )  # fmt: skip


FEW = 64
"""Up to as many columns a product is bound by memory, and the kernels' own is faster than the library's."""


def times(A: Array, X: Array) -> Array:
    """A·X, at the speed of memory where there are few columns."""
    return products.product(A, X) if _few(A, X) else A @ X


def adjoint_times(A: Array, Y: Array) -> Array:
    """Aᵀ·Y, at the speed of memory where there are few columns."""
    return products.adjoint_product(A, Y) if _few(A, Y) else A.T @ Y


def _few(A: Array, X: Array) -> bool:
    own = native.extension is not None and isinstance(A, torch.Tensor) and not A.is_cuda
    return own and X.shape[1] <= FEW and A.stride(1) == 1


def operand(A: Any) -> Operand:
    """From a NumPy, torch or CuPy matrix, a Jacobian, or a SciPy operator. Raises InputError for anything else."""
    if isinstance(A, np.ndarray | torch.Tensor) or is_cupy(A):
        return _of_array(A)
    shape, dtype = getattr(A, "shape", None), getattr(A, "dtype", None)
    if not (hasattr(A, "matmat") and hasattr(A, "rmatmat") and shape is not None and len(shape) == 2):
        raise InputError(
            f"expected a matrix, a Jacobian or an operator with matmat and rmatmat, got {type(A).__name__}"
        )
    if isinstance(dtype, torch.dtype):
        return _of_jacobian(A)
    kind = np.dtype(dtype if dtype is not None else float)
    if kind not in (np.float32, np.float64):
        raise InputError(f"expected an operator of float32 or float64, got {kind}")

    def on_host(product: Callable[[Array], Array]) -> Callable[[Array], Array]:
        return lambda X: torch.from_numpy(np.ascontiguousarray(product(X.numpy()), dtype=kind))

    return Operand(
        (int(shape[0]), int(shape[1])), kind, on_host(A.matmat), on_host(A.rmatmat),
        lambda values: torch.from_numpy(values.astype(kind)), lambda X: X.numpy(), lambda: None,
    )  # fmt: skip


def _of_array(A: Any) -> Operand:
    A = check_matrix(A)
    if is_cupy(A):
        import cupy

        return Operand(
            tuple(A.shape), A.dtype, lambda X: A @ X, lambda Y: A.T @ Y,
            lambda values: cupy.asarray(values.astype(A.dtype)), lambda X: X, lambda: float((A.astype("float64") ** 2).sum()),
        )  # fmt: skip
    numpy = isinstance(A, np.ndarray)
    # one library, and its threads, for all products: NumPy's would spin beside torch's
    T = torch.from_numpy(A if A.flags.writeable and min(A.strides) >= 0 else A.copy()) if numpy else A.detach()
    kind = np.dtype(dtype_name(T.dtype))
    rows, matmat, rmatmat = (T, times, adjoint_times) if T.stride(1) == 1 else (T.T, adjoint_times, times)
    return Operand(
        tuple(T.shape), kind, lambda X: matmat(rows, X), lambda Y: rmatmat(rows, Y),
        lambda values: torch.from_numpy(values.astype(kind)).to(T.device),
        (lambda X: X.numpy()) if numpy else (lambda X: X),
        lambda: squared_norm(T.cpu().numpy()),
    )  # fmt: skip


def _of_jacobian(J: Any) -> Operand:
    kind = np.dtype(dtype_name(J.dtype))
    return Operand(
        tuple(J.shape), kind, J.matmat, J.rmatmat,
        lambda values: torch.from_numpy(values.astype(kind)).to(J.device), lambda X: X,
        J.known_energy, J.matmat_rounding, J.rmatmat_rounding,
    )  # fmt: skip


SHRUNK = 2.0**-60


def scaled(A: Operand, seed: int = 0) -> tuple[Operand, float]:
    """A divided by a power of two, and that power, where squares of its products would leave the range; A and 1.0 else."""
    X = A.new(np.random.default_rng(seed).standard_normal((A.shape[1], 1)))
    largest = float(abs(_tried("matmat", A.matmat, X)).max())
    shrunk = 1.0 if np.isfinite(largest) else SHRUNK
    if shrunk != 1:  # a sum that overflows, of entries that may not
        largest = float(abs(A.matmat(X * shrunk)).max())
    if not np.isfinite(largest) or largest == 0 or (shrunk == 1 and 2.0**-30 <= largest <= 2.0**30):
        return A, 1.0
    exponent = min(np.floor(np.log2(largest)) - np.log2(shrunk), 1023.0)  # the last power that is a float
    once, twice = 2.0 ** np.floor(-exponent / 2), 2.0 ** np.ceil(-exponent / 2)  # the inverse itself may overflow

    def of(product: Callable[[Array], Array]) -> Callable[[Array], Array]:
        return lambda X: product(X * once) * twice  # halfway before, so that sums inside stay in range

    def size(measured: Callable[[Array], float]) -> Callable[[Array], float]:
        return lambda X: measured(X) * once * twice

    return replace(
        A, matmat=of(A.matmat), rmatmat=of(A.rmatmat), energy=lambda: None,
        matmat_rounding=size(A.matmat_rounding), rmatmat_rounding=size(A.rmatmat_rounding),
    ), 2.0**exponent  # fmt: skip


def _tried(name: str, product: Callable[[Array], Array], columns: Array) -> Array:
    """Raises InputError in words where an operator has no such product: SciPy's may lack rmatvec."""
    try:
        return product(columns)
    except TightpassError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # a user's operator may raise anything
        said = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
        raise InputError(f"the operator's {name} fails ({said[:200]}); it needs both matmat and rmatmat") from error


def check_operator(A: Operand, seed: int = 0) -> None:
    """Raises InputError for an operator that is not one matrix: shapes, linearity, adjoint, the same answer twice."""
    m, n = A.shape
    rng = np.random.default_rng(seed)
    X, Y = A.new(rng.standard_normal((n, 2))), A.new(rng.standard_normal((m, 2)))
    AX, AtY = (
        _tried(name, product, columns)
        for name, product, columns in (("matmat", A.matmat, X), ("rmatmat", A.rmatmat, Y))
    )
    for name, found, wanted in (("matmat", AX, (m, 2)), ("rmatmat", AtY, (n, 2))):
        if tuple(found.shape) != wanted:
            raise InputError(f"{name}: expected an answer of shape {wanted}, got {tuple(found.shape)}")
    again = A.matmat(X)
    unit = 64 * float(np.finfo(A.dtype).eps) * np.sqrt(max(m, n))
    size, back = float((AX**2).sum()) ** 0.5, float((AtY**2).sum()) ** 0.5
    if not np.isfinite(size) or not np.isfinite(back):
        raise InputError(
            f"its products are not finite: NaN or infinity inside, or beyond the range of {np.dtype(A.dtype)}; scale it"
        )
    if float(((AX - again) ** 2).sum()) ** 0.5 > unit * size / 4:
        raise InputError("the operator gives different answers to the same question; it must be one fixed matrix")
    both = A.matmat(X[:, :1] + 2 * X[:, 1:])
    bent = float(((both - AX[:, :1] - 2 * AX[:, 1:]) ** 2).sum()) ** 0.5
    left, right = AX.T @ Y, X.T @ AtY
    apart = float(((left - right) ** 2).sum()) ** 0.5
    reach = float((X**2).sum()) ** 0.5, float((Y**2).sum()) ** 0.5
    if bent <= unit * size and apart <= unit * (size * reach[1] + reach[0] * back):
        return
    pushed, pulled = (
        A.matmat_rounding(X),
        A.rmatmat_rounding(Y),
    )  # what cancels inside rounds by more than what comes out
    if bent > unit * size + ROUNDINGS * pushed:
        raise InputError("the operator is not linear: A(x + 2y) differs from Ax + 2Ay")
    if apart > unit * (size * reach[1] + reach[0] * back) + ROUNDINGS * (pushed * reach[1] + reach[0] * pulled):
        raise InputError("rmatmat is not the adjoint of matmat: yᵀ(Ax) differs from (Aᵀy)ᵀx")
