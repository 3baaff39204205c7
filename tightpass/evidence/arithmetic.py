"""The floor's part of the model's own arithmetic: E = Ĵ − J, J as stored less J as the formulas have it.

E is applied to vectors in about twice float64's precision, and its norm found by Lanczos. Where formulas are not known, J
is computed again with every operation perturbed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tightpass.confidence import ASSUMED, CALIBRATED, CERTAIN, PROBED, ROUNDING
from tightpass.jacobians.autodiff import Linearisation
from tightpass.jacobians.forms.base import Cost
from tightpass.jacobians.operator import Jacobian
from tightpass.jacobians.perturbed import frobenius as frobenius_of
from tightpass.jacobians.perturbed import moved
from tightpass.jacobians.perturbed import work_of as work_of_perturbing
from tightpass.jacobians.perturbing import DRAWS
from tightpass.jacobians.twice.block import Twice, TwiceCost
from tightpass.jacobians.twice.pair import Pair, of
from tightpass.kernels.products import block_product
from tightpass.models.shape import Shape
from tightpass.rank.records import Part
from tightpass.structure import Panel
from tightpass.work import Work, kept, passing

Matrix = NDArray[np.floating[Any]]
Panels = Callable[[], Iterator[Panel]]
"""The blocks of a Jacobian as they are stored, as often as they are asked for."""

NAME = "model arithmetic"
SAFETY = 2.0
"""Times how far a perturbed J is from J: of 2038 random functions the true error was 0.06 (median) to 0.79 (worst) of that."""
WHOLE = 128
"""Up to as many columns E is formed, and its norm is certain."""
CHANCE = 1e-4
"""That Lanczos finds less than ‖E‖₂/√2."""
FINER = 2.0**-20
"""What float64 may be off of its own, in parts of what float32 is: it has 2²⁹ times finer units."""
SCALED = 4 * 2.0**-29
"""From the error of float32 to that of float64, with room: of the true one it was 0.45 to 0.99 before the factor 4."""
SPARE = 1e-3
GAUSSIANS, SMALL_BALL = 8, 0.05
"""χ² of so many degrees of freedom is below this part of its mean with a probability of 6·10⁻⁵."""


class Products(Protocol):
    """J·X and Jᵀ·Y of (k, T, d) tangents and cotangents, by another way than the blocks that are stored."""

    def push(self, tangents: Pair) -> Pair: ...
    def pull(self, cotangents: Pair) -> Pair: ...


class Plain:
    """Products as they are computed, in their own precision."""

    def __init__(self, of_one: Jacobian | Linearisation, dtype: torch.dtype) -> None:
        self.of_one, self.dtype = of_one, dtype

    def push(self, tangents: Pair) -> Pair:
        return of(self.of_one.push(tangents.rounded().to(self.dtype)))

    def pull(self, cotangents: Pair) -> Pair:
        return of(self.of_one.pull(cotangents.rounded().to(self.dtype)))


class Apart:
    """E = Ĵ − J, both by products, of vectors that J's own precision holds."""

    def __init__(self, J: Jacobian, exact: Products) -> None:
        self.computed, self.exact, self.dtype, self.device = Plain(J, J.dtype), exact, J.dtype, J.device
        self.rows, self.columns = (J.tokens_out, J.d_out), (J.tokens_in, J.d_in)

    def push(self, v: torch.Tensor) -> torch.Tensor:
        return self._apart(self.computed.push, self.exact.push, v[None])[0].cpu()

    def pull(self, u: torch.Tensor) -> torch.Tensor:
        return self._apart(self.computed.pull, self.exact.pull, u[None])[0].cpu()

    def columns_of(self, X: torch.Tensor) -> torch.Tensor:
        """E·X for X (k, tokens_in, d_in), as (k, M)."""
        return self._apart(self.computed.push, self.exact.push, X).flatten(1).cpu()

    def whole(self) -> Matrix:
        """E (M, N) of a small J."""
        units = torch.eye(math.prod(self.columns), dtype=torch.float64).view(-1, *self.columns)
        return self.columns_of(units).T.numpy()

    def _apart(self, one: Callable[[Pair], Pair], other: Callable[[Pair], Pair], X: torch.Tensor) -> torch.Tensor:
        held = of(X.to(self.device, self.dtype))
        return (one(held) - other(held)).rounded()


class Difference:
    """E = Ĵ − J, Ĵ in stored blocks, J by products."""

    def __init__(self, J: Jacobian, stored: Panels, exact: Products) -> None:
        self.stored, self.exact, self.device = stored, exact, J.device
        self.rows, self.columns = (J.tokens_out, J.d_out), (J.tokens_in, J.d_in)

    def push(self, v: torch.Tensor) -> torch.Tensor:
        """E·v for v (tokens_in, d_in) float64 on the host, rounded once."""
        return (self._stored(v, self.rows, adjoint=False) - self._exact(self.exact.push, v)).rounded()

    def pull(self, u: torch.Tensor) -> torch.Tensor:
        """Eᵀ·u for u (tokens_out, d_out)."""
        return (self._stored(u, self.columns, adjoint=True) - self._exact(self.exact.pull, u)).rounded()

    def _stored(self, v: torch.Tensor, shape: tuple[int, int], adjoint: bool) -> Pair:
        high, low = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
        for panel in self.stored():
            blocks = panel.blocks.cpu().double().contiguous()
            block_product(blocks, panel.rows, panel.columns, v, high, low, adjoint)
        return Pair(high, torch.zeros_like(low)) + low

    def _exact(self, product: Callable[[Pair], Pair], v: torch.Tensor) -> Pair:
        return product(of(v.to(self.device)[None]))[0].map(torch.Tensor.cpu)

    def whole(self) -> Matrix:
        """E (M, N) of a small J."""
        (T, d), (S, e) = self.rows, self.columns
        stored = torch.zeros(T, d, S, e, dtype=torch.float64)
        for panel in self.stored():
            for t, s, block in zip(panel.rows, panel.columns, panel.blocks, strict=True):
                stored[t, :, s] = block
        units = torch.eye(S * e, dtype=torch.float64, device=self.device).view(-1, S, e)
        exact = self.exact.push(of(units)).map(lambda part: part.cpu().flatten(1).T)
        return (of(stored.reshape(T * d, S * e)) - exact).rounded().numpy()


def steps(n: int) -> int:
    """How many steps of Lanczos find half of the largest eigenvalue of a matrix of n columns, but for a part `CHANCE` of
    all starts: 1.648·√n·exp(−√½·(2k − 1)) ≤ CHANCE (Kuczyński & Woźniakowski 1992)."""
    return min(n, math.ceil((math.log(1.648 * math.sqrt(n) / CHANCE) * math.sqrt(2) + 1) / 2))


def work_of(cost: Cost, exact: TwiceCost, kind: str, tokens: int, shape: Shape, itemsize: int, panels: int = 0) -> Work:
    """Of `measured`, with so many bytes of stored blocks at once, or of products alone; of `estimated` where formulas are not
    known."""
    if kind not in shape.closed:
        return work_of_perturbing(cost, kind, tokens, shape, itemsize)
    size = tokens * shape.width
    basis = kept(2 * steps(size) * size * 8)
    return basis.then(exact.product(GAUSSIANS), passing(panels)).dropped().then(exact.perturbed)


class Error(Protocol):
    """E by products with one vector, and formed where it is small."""

    columns: tuple[int, int]

    def push(self, v: torch.Tensor) -> torch.Tensor: ...
    def pull(self, u: torch.Tensor) -> torch.Tensor: ...
    def whole(self) -> Matrix: ...


def lanczos_norm(E: Error, count: int, seed: int = 0) -> float:
    """The largest singular value of E on the Krylov space of `count` steps from a random start: at most ‖E‖₂.

    Golub & Kahan's (1965) bidiagonalisation, all vectors kept orthogonal.
    """
    v = torch.from_numpy(np.random.default_rng(seed).standard_normal(E.columns))
    V, U = [v / v.norm()], list[torch.Tensor]()
    B = np.zeros((count, count))
    for k in range(count):
        u = E.push(V[k])
        if not bool(u.isfinite().all()):
            return math.inf
        B[:k, k] = _remove(u, U)
        B[k, k] = float(u.norm())
        if k + 1 == count or B[k, k] == 0:
            break
        U.append(u / B[k, k])
        w = E.pull(U[k])
        _remove(w, V)
        size = float(w.norm())
        if size == 0:
            break
        V.append(w / size)
    return float(np.linalg.norm(B, 2))


def _remove(u: torch.Tensor, basis: list[torch.Tensor]) -> list[float]:
    """Takes the basis' part off u, twice; returns its coefficients."""
    found = [0.0] * len(basis)
    for _ in range(2):
        for i, b in enumerate(basis):
            part = float((b * u).sum())
            u -= part * b
            found[i] += part
    return found


def norm2(E: Matrix) -> float:
    """‖E‖₂ by the largest eigenvalue of the scaled Gram matrix, rounded up.

    The largest eigenvalue alone is safe to take from a Gram matrix: its relative error is a few N·eps.
    """
    scale = float(np.max(np.abs(E), initial=0.0))
    if not np.isfinite(scale):
        return float("inf")
    if scale == 0:
        return 0.0
    scaled = E / scale
    G = scaled.T @ scaled if E.shape[0] >= E.shape[1] else scaled @ scaled.T
    return scale * float(np.sqrt(np.linalg.eigvalsh(G)[-1])) * (1 + 1e-10)


@dataclass(frozen=True)
class Bound:
    """‖E‖₂ is at most this, but for a `chance`."""

    size: float
    how: str
    chance: float


def bound(E: Error) -> Bound:
    """On ‖E‖₂."""
    columns = math.prod(E.columns)
    if columns <= WHOLE:
        return Bound((1 + SPARE) * norm2(E.whole()), "all of it", 0.0)
    k = steps(columns)
    return Bound(
        math.sqrt(2) * (1 + SPARE) * lanczos_norm(E, k), f"{k} steps of Lanczos from a random start, times √2", CHANCE
    )


def measured(J: Jacobian, stored: Panels, exact: Twice) -> Part:
    """J as stored against J in twice float64's precision."""
    found = bound(Difference(J, stored, exact))
    method = f"measured: J as stored against J in twice float64's precision, {found.how}"
    return Part(NAME, found.size + exact.rounding, method, PROBED if found.chance else CERTAIN, found.chance)


def estimated(J: Jacobian, stored: Panels) -> Part:
    """Where no formulas are known in twice float64's precision: how far J moves when every operation is perturbed, and how
    far J as stored is from automatic differentiation where it was computed in another way."""
    if J.block is None:
        return _of_function(J, lambda exact: Difference(J, stored, exact))
    if not J.form.closed:
        return _estimate(J, 0.0, "")
    found = bound(Difference(J, stored, _differentiated(J)))
    return _estimate(J, found.size, f"; and J as stored against automatic differentiation, {found.how}")


def estimated_of_products(J: Jacobian) -> Part:
    """`estimated`, where J is never formed."""
    if J.block is None:
        return _of_function(J, lambda exact: Apart(J, exact))
    if not J.form.closed:
        return _estimate(J, 0.0, "")
    found = bound(Apart(J, _differentiated(J)))
    return _estimate(J, found.size, f"; and its products against automatic differentiation, {found.how}")


def _of_function(J: Jacobian, against: Callable[[Plain], Error]) -> Part:
    """Of a function that was handed in: estimated; of float32 as well, where it lets that be, against J in float64, which may
    underflow and cancel likewise, so that the larger of both counts; assumed where some of it is computed out of sight and in one
    precision only."""
    other, part = J.otherwise(), _estimate(J, 0.0, "")
    if other is not None and J.dtype == torch.float32:
        found = bound(against(Plain(other, torch.float64)))
        method = f"{part.method}; and J as stored against J of the same function in float64, {found.how}"
        return replace(part, bound=max(part.bound, found.size * (1 + FINER)), method=method)
    if not J.hides:
        return part
    if other is not None:
        scaled = SCALED * frobenius_of(J.held(), other)
        why = "and J in float32 against it, times 2⁻²⁹ and 4, since some of it is computed outside of torch"
        return replace(part, bound=max(part.bound, scaled), method=f"{part.method}; {why}")
    unit = ROUNDING * float(torch.finfo(J.dtype).eps) * math.sqrt(min(J.shape))
    why = f"assumed: {ROUNDING:g}·eps·√N·‖J‖_F, since some of it is computed outside of torch, in one precision only"
    return Part(NAME, part.bound + unit * frobenius_of(J.held()), why, ASSUMED)


def _differentiated(J: Jacobian) -> Plain:
    return Plain(J.differentiated, J.dtype)


def _estimate(J: Jacobian, apart: float, how: str) -> Part:
    method = (
        f"estimated: {DRAWS} computations of J with every operation perturbed by its rounding, times {SAFETY:g}{how}"
    )
    return Part(NAME, SAFETY * moved(J.held()) + apart, method, CALIBRATED)


def frobenius(J: Jacobian, exact: Twice) -> float:
    """A bound on ‖E‖_F of products, but for a chance of `CHANCE`: the mean of ‖E·z‖² over Gaussian z is ‖E‖_F², and falls
    below `SMALL_BALL` of it that seldom even where E has rank one."""
    generator = torch.Generator().manual_seed(6)
    Z = torch.randn(GAUSSIANS, J.tokens_in, J.d_in, generator=generator, dtype=torch.float64)
    moved = Apart(J, exact).columns_of(Z)
    return float(moved.norm()) / math.sqrt(GAUSSIANS * SMALL_BALL) + math.sqrt(min(J.shape)) * exact.rounding


def measured_of_products(J: Jacobian, exact: Twice) -> Part:
    """Where J is never formed: its products against those in twice float64's precision."""
    found = bound(Apart(J, exact))
    method = f"measured: products against those in twice float64's precision, {found.how}; ‖E‖_F by {GAUSSIANS} random vectors"
    return Part(NAME, found.size + exact.rounding, method, PROBED, found.chance + CHANCE)
