"""Many small SVDs, one per core, each with a bound on its own error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import get_lapack_funcs

from tightpass.arrays import is_torch, on_host, squared_norm
from tightpass.confidence import ASSUMED, CERTAIN, PROBED
from tightpass.errors import VerificationError
from tightpass.kernels.svd import PROBES
from tightpass.spectra import device
from tightpass.spectra.dense import BASIC, Answer, against_reference, rounded, verified
from tightpass.spectra.refine import ARRAYS
from tightpass.spectra.threads import one_per_core
from tightpass.spectra.twostage import CHANCE, LOSS, MISFIT, loss, probed_error, probes, quantile
from tightpass.spectra.verify import SMALL, SvdError, check_values
from tightpass.work import Work, passing

Matrix = NDArray[np.floating[Any]]
Factors = Callable[[int], tuple[Matrix, Matrix] | None]
"""C (n, d_out) and B (n, d_in) with block (t, t) = CᵀB of rank n at most, where known (`Jacobian.factors`)."""
CANCELLATION = 4.0
"""Factors are used while ‖C‖_F·‖B‖_F is at most this many times √n·‖A‖_F."""
WHOLE = 256
"""Up to this many rows and columns every block is held against a reference of more precision, which takes about six times
as long as its values; wider blocks go by probes."""
FEW = 6
"""So many blocks, or less, are held against the reference up to `SMALL` rows and columns."""
PROBED_ARRAYS = 6
"""Float64 arrays of a block's size that an SVD by probes takes, with the factors."""
UNKNOWN = SvdError(float("inf"), "not measured", ASSUMED)


def is_referenced(shape: tuple[int, ...], count: int) -> bool:
    """Whether each of `count` blocks of a shape is held against a reference, and its error certain."""
    return max(shape) <= (SMALL if count <= FEW else WHOLE)


def work_of(shape: tuple[int, int], count: int, threads: int) -> Work:
    """Of `count` blocks of a shape: one for each thread at once."""
    arrays = ARRAYS if is_referenced(shape, count) else PROBED_ARRAYS
    one = shape[0] * shape[1]
    return passing(min(threads, count) * arrays * one * 8, 8 / 3 * count * one * min(shape))


def block_answers(blocks: Any, factors: Factors = lambda t: None, count: int | None = None) -> list[Answer]:
    """Singular values of each of (k, m, n) blocks, verified; `factors` is asked for block 0 .. k − 1.

    count   how many blocks there are in all, which share the chance that a bound by probes fails; k if left out

    Raises VerificationError if no route's answer can be trusted.
    """
    count = count or len(blocks)
    if not is_referenced(tuple(blocks.shape[1:]), count):
        whole, chance = on_host(blocks), CHANCE / count
        return one_per_core(lambda i: _probed(whole[i], factors(i), chance), range(len(whole)))
    if is_torch(blocks) and blocks.is_cuda:
        return _on_device(blocks)
    whole = on_host(blocks)
    return one_per_core(lambda i: _referenced(whole[i], factors(i)), range(len(whole)))


def block_values(blocks: Any, factors: Factors = lambda t: None) -> list[Matrix]:
    """The values alone."""
    return [answer.values for answer in block_answers(blocks, factors)]


def largest(errors: list[SvdError]) -> SvdError:
    """The bound for all blocks: the largest, as sure as the least sure of them; chances add up."""
    order = (CERTAIN, PROBED, ASSUMED)
    methods = Counter(error.method for error in errors)
    return SvdError(
        max(error.bound for error in errors),
        "; ".join(f"{method} ({number} of {len(errors)} blocks)" for method, number in methods.items()),
        max((error.confidence for error in errors), key=order.index),
        sum(error.chance for error in errors),
    )


def _on_device(blocks: torch.Tensor) -> list[Answer]:
    """All at once on a GPU, which one after the other would leave idle; references on the processor."""
    candidates: list[tuple[str, Callable[[Any], Any]]] = [("svdvals", torch.linalg.svdvals)]
    if blocks.dtype == torch.float32:
        candidates.append(("gram", _gram))
    best = device.fastest_batched(blocks, candidates)
    found, whole = dict(candidates)[best](blocks).cpu().numpy(), blocks.cpu().numpy()
    return one_per_core(lambda i: _accepted(whole[i], found[i], best) or _referenced(whole[i], None), range(len(whole)))


def _gram(blocks: torch.Tensor) -> torch.Tensor:
    """Through float64 Gram matrices of float32 blocks: batched on a GPU, and exact to 1e-8 σ₁ (`gram`)."""
    wide = blocks.double()
    G = wide.mT @ wide if blocks.shape[1] >= blocks.shape[2] else wide @ wide.mT
    squares: torch.Tensor = torch.linalg.eigvalsh(G).clamp(min=0)
    return squares.sqrt().flip(-1).float()


def one(A: Matrix) -> Matrix:
    """Singular values of one of many small matrices, on one thread."""
    return verified(A, threads=1).values  # type: ignore[no-any-return]


def _accepted(A: Matrix, values: Matrix, route: str) -> Answer | None:
    """Values of block A with their error, or None where they are not those of the block that was written."""
    try:
        check_values(values, squared_norm(A), A.shape)
        return against_reference(A, Answer(values, route, UNKNOWN, (BASIC,)))
    except VerificationError:
        return None


def _referenced(A: Matrix, pair: tuple[Matrix, Matrix] | None) -> Answer:
    """By the factors where they may be used and fit the block that was written."""
    answer = None
    if pair is not None and _may_be_used(*pair, A):
        answer = _accepted(A, factored_values(*pair), "factors")
    return answer or verified(A, threads=1, examined=against_reference)


def _probed(A: Matrix, pair: tuple[Matrix, Matrix] | None, chance: float) -> Answer:
    """Likewise, with a bound that fails with probability `chance` at most; float32 blocks are decomposed in float64, whose
    probes see what float32 rounding would hide."""
    wide = A.astype(np.float64, copy=False)
    answer = None
    if pair is not None and _may_be_used(*pair, A):
        C, B = (factor.astype(np.float64, copy=False) for factor in pair)
        with suppress(VerificationError):
            answer = _by_factors(A, C, B, chance)
    answer = answer or verified(wide, threads=1, bound=partial(probed_error, chance=chance))
    return answer if A.dtype == np.float64 else rounded(answer)


def _may_be_used(C: Matrix, B: Matrix, A: Matrix) -> bool:
    """The core's rounding is relative to ‖C‖·‖B‖, which is about √n·‖A‖_F unless terms of CᵀB cancel."""
    return bool(np.linalg.norm(C) * np.linalg.norm(B) <= CANCELLATION * np.sqrt(len(C) * squared_norm(A)))


def factored_values(C: Matrix, B: Matrix) -> Matrix:
    """Singular values of A = CᵀB for C (n, M) and B (n, N) with n ≤ min(M, N): those of the n × n core
    R_C·R_Bᵀ from QR of both factors, and min(M, N) − n exact zeros. Raises as `dense.verified` does."""
    if not len(C):
        return np.zeros(min(C.shape[1], B.shape[1]), dtype=C.dtype)
    return _filled(one(_Reflected(C).R @ _Reflected(B).R.T), C, B)


def _filled(core: Matrix, C: Matrix, B: Matrix) -> Matrix:
    values = np.zeros(min(C.shape[1], B.shape[1]), dtype=C.dtype)
    values[: len(core)] = core
    return values


def _by_factors(A: Matrix, C: Matrix, B: Matrix, chance: float) -> Answer:
    """The values of the core, with a bound that covers both QR factorisations, the core's product and the rounding of A.

    For Gaussian Z, Q_Cᵀ·(A·Z) − R_C·R_Bᵀ·(Q_Bᵀ·Z) = E·Z is all that lies between A, as it was written, and the core: half
    of the chance for that, half for the core's own probes. Raises VerificationError where it is more than rounding.
    """
    n, size = len(C), max(A.shape)
    if n == 0:
        zeros = SvdError(float(np.sqrt(squared_norm(A))), "no unit is active", CERTAIN)
        return Answer(_filled(np.zeros(0), C, B), "factors", zeros, (BASIC,))
    left, right = _Reflected(C), _Reflected(B)
    core = left.R @ right.R.T
    answer = verified(core, threads=1, bound=partial(probed_error, chance=chance / 2))
    values = _filled(answer.values, C, B)
    check_values(values, squared_norm(A), A.shape, A.dtype)
    Z = probes(A.shape[1], "float64").T
    off = left.turned(A @ Z)
    off[:n] -= core @ right.turned(Z)[:n]
    misfit = float(np.linalg.norm(off))
    unit = float(np.finfo(A.dtype).eps) * np.sqrt(size * PROBES)
    if not misfit <= MISFIT * unit * np.linalg.norm(C) * np.linalg.norm(B):
        raise VerificationError(f"factors of a block miss it by {misfit:.1e} in the direction of probes")
    sigma1 = float(values[0])
    method = f"measured: {PROBES} Gaussian probes through the factors and through their core's reduction; "
    method += f"twice {LOSS:.0f}·eps·√N·σ₁ for the loss of orthogonality"
    bound = misfit / quantile(chance / 2) + loss(sigma1, size, np.float64) + answer.error.bound
    confidence = PROBED if answer.error.confidence == CERTAIN else answer.error.confidence
    error = SvdError(bound, method, confidence, chance / 2 + answer.error.chance)
    return Answer(values, "factors", error, (BASIC, "factors and core by four random probes each"))


class _Reflected:
    """The QR factorisation of Fᵀ, F (n, m) with n ≤ m, by LAPACK itself: twice as fast as NumPy's door to it."""

    def __init__(self, F: Matrix) -> None:
        geqrf, self.ormqr = get_lapack_funcs(("geqrf", "ormqr"), (F,))
        self.factored, self.tau, _, info = geqrf(F.T, lwork=64 * len(F))
        if info != 0:
            raise np.linalg.LinAlgError(f"geqrf: argument {-info} is wrong")

    @property
    def R(self) -> Matrix:
        return np.triu(self.factored[: self.factored.shape[1]])

    def turned(self, X: Matrix) -> Matrix:
        """Qᵀ·X with the whole orthogonal Q (m, m), X (m, k)."""
        turned, _, info = self.ormqr("L", "T", self.factored, self.tau, X, lwork=64 * max(X.shape))
        if info != 0:
            raise np.linalg.LinAlgError(f"ormqr: argument {-info} is wrong")
        return turned  # type: ignore[no-any-return]
