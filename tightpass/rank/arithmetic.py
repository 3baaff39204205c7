"""The floor's part of the model's own arithmetic: E = Ĵ − J, J as stored less J as the formulas have it.

E is applied to vectors in about twice float64's precision, and its norm found by Lanczos. Where a block has pieces that
are not known in that precision, J in the other of float32 and float64 stands in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tightpass.jacobian.operator import Jacobian
from tightpass.jacobian.twice.block import Twice
from tightpass.jacobian.twice.pair import Pair, of
from tightpass.kernels import ops
from tightpass.rank.floor import CALIBRATED, Part
from tightpass.spectra.twostage import PROBED
from tightpass.spectra.verify import ASSUMED, CERTAIN
from tightpass.structure import Panel

Matrix = NDArray[np.floating[Any]]
Panels = Callable[[], Iterator[Panel]]
"""The blocks of a Jacobian as they are stored, as often as they are asked for."""

NAME = "model arithmetic"
RATIO = 2.0**-29
"""The rounding unit of float64 over that of float32."""
SAFETY = 4.0
"""Times the scaled float32 error: of ordinary blocks it was 0.8 to 2.2 times the true one (decision 009)."""
WHOLE = 128
"""Up to as many columns E is formed, and its norm is certain."""
CHANCE = 1e-4
"""That Lanczos finds less than ‖E‖₂/√2."""
SPARE = 1e-3


class Products(Protocol):
    """J·X and Jᵀ·Y of (k, T, d) tangents and cotangents, in more precision than E needs; `rounding` of theirs, given ‖J‖_F."""

    def push(self, tangents: Pair) -> Pair: ...
    def pull(self, cotangents: Pair) -> Pair: ...
    def rounding(self, norm: float) -> float: ...


@dataclass(frozen=True)
class Plain:
    """A Jacobian of another precision, as it is."""

    J: Jacobian

    def push(self, tangents: Pair) -> Pair:
        return self._by(self.J.matmat, tangents, (self.J.tokens_out, self.J.d_out))

    def pull(self, cotangents: Pair) -> Pair:
        return self._by(self.J.rmatmat, cotangents, (self.J.tokens_in, self.J.d_in))

    def rounding(self, norm: float) -> float:
        """The ordinary error of arithmetic, as in `assumed`."""
        return 16 * float(torch.finfo(self.J.dtype).eps) * norm

    def _by(self, product: Callable[[torch.Tensor], torch.Tensor], X: Pair, shape: tuple[int, int]) -> Pair:
        columns = X.rounded().flatten(1).T.to(self.J.dtype)
        return of(product(columns.contiguous()).T.reshape(-1, *shape))


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
            ops.block_product(blocks, panel.rows, panel.columns, v, high, low, adjoint)
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


def lanczos_norm(E: Difference, count: int, seed: int = 0) -> float:
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


def bound(E: Difference, energy: float) -> Bound:
    """On ‖E‖₂, of a J of this ‖J‖_F²."""
    columns = math.prod(E.columns)
    rounding = E.exact.rounding(math.sqrt(energy))
    if columns <= WHOLE:
        return Bound((1 + SPARE) * norm2(E.whole()) + rounding, "all of it", 0.0)
    k = steps(columns)
    size = math.sqrt(2) * (1 + SPARE) * lanczos_norm(E, k) + rounding
    return Bound(size, f"{k} steps of Lanczos from a random start, times √2", CHANCE)


def measured(J: Jacobian, stored: Panels, exact: Twice, energy: float) -> Part:
    """J as stored against J in twice float64's precision."""
    found = bound(Difference(J, stored, exact), energy)
    method = f"measured: J as stored against J in twice float64's precision, {found.how}"
    return Part(NAME, found.size, method, PROBED if found.chance else CERTAIN, found.chance)


def scaled(J: Jacobian, stored: Panels, shadow: Jacobian, energy: float, certain: bool) -> Part:
    """Where the formulas are not known in twice float64's precision: J as stored against J in the other precision.

    A float32 J is as far from the truth as from the float64 J. The float32 J's error, scaled by the ratio of the precisions, times 4,
    stands for that of a float64 J, but never less than the error of ordinary arithmetic, 16·eps·‖J‖_F.

    certain   whether there is no softmax inside: one that saturates in float32 has no error there to be scaled
    """
    found = bound(Difference(J, stored, Plain(shadow)), energy)
    ordinary = 16 * float(np.finfo(np.float64).eps) * math.sqrt(energy)
    word, how = CALIBRATED if certain else ASSUMED, f"float32 J against float64 J, {found.how}"
    if J.dtype == torch.float32:
        return Part(NAME, found.size, f"measured: {how}, and 16·eps·‖J‖_F of float64", word, found.chance)
    method = f"measured: {how}, scaled by 2⁻²⁹ · 4, and at least 16·eps·‖J‖_F"
    return Part(NAME, max(SAFETY * RATIO * found.size, ordinary), method, word, found.chance)


def assumed(energy: float, dtype: str) -> Part:
    """For a function that cannot be evaluated in a second precision: 16·eps·‖J‖_F."""
    size = 16 * float(np.finfo(dtype).eps) * float(np.sqrt(energy))
    return Part(NAME, size, "assumed: 16·eps·‖J‖_F, no second precision at hand", ASSUMED)


def along(J: Jacobian, exact: Products, U: torch.Tensor, Vh: torch.Tensor) -> float:
    """Where J is never formed: ‖[E·V; Eᵀ·U]‖₂ for the k triplets that were found, U (M, k), Vh (k, N).

    With R = [J V − U Σ; Jᵀ U − V Σ] and orthonormal U, V, k singular values of J + E lie within ‖R‖₂ + ‖[E V; Eᵀ U]‖₂
    of Σ (Kahan 1967): the errors in other directions do not matter to them.
    """
    V, W = (side.to(J.device, J.dtype).contiguous() for side in (Vh.T, U))
    pushed = _apart(J.matmat(V), exact.push, V, (J.tokens_in, J.d_in))
    pulled = _apart(J.rmatmat(W), exact.pull, W, (J.tokens_out, J.d_out))
    return (1 + SPARE) * norm2(torch.cat([pushed, pulled]).cpu().numpy())


def _apart(
    found: torch.Tensor, product: Callable[[Pair], Pair], X: torch.Tensor, shape: tuple[int, int]
) -> torch.Tensor:
    true = product(of(X.T.reshape(-1, *shape))).map(lambda part: part.flatten(1).T)
    return (of(found) - true).rounded()


def measured_along(J: Jacobian, exact: Twice, U: torch.Tensor, Vh: torch.Tensor, energy: float) -> Part:
    """`along` in twice float64's precision."""
    method = (
        f"measured: products with the {len(Vh)} triplets that were found against those in twice float64's precision"
    )
    return Part(NAME, along(J, exact, U, Vh) + exact.rounding(math.sqrt(energy)), method, CERTAIN)


def scaled_along(
    J: Jacobian, shadow: Jacobian, U: torch.Tensor, Vh: torch.Tensor, energy: float, certain: bool
) -> Part:
    """`along` against the other precision, as in `scaled`."""
    size = along(J, Plain(shadow), U, Vh)
    ordinary = 16 * float(np.finfo(np.float64).eps) * math.sqrt(energy)
    word, how = CALIBRATED if certain else ASSUMED, f"products with the {len(Vh)} triplets that were found"
    if J.dtype == torch.float32:
        return Part(NAME, size + ordinary, f"measured: float32 J against float64 J, {how}", word)
    method = f"measured: float32 J against float64 J, {how}, scaled by 2⁻²⁹ · 4, and at least 16·eps·‖J‖_F"
    return Part(NAME, max(SAFETY * RATIO * size, ordinary), method, word)
