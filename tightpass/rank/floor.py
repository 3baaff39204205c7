"""How far can a computed singular value be from the true one? The floor and its parts.

|σᵢ(J + E) − σᵢ(J)| ≤ ‖E‖₂ (Weyl 1912), for each source of error E. The parts add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tightpass.spectra.threads import one_per_core

Matrix = NDArray[np.floating[Any]]

FLOAT32_TO_FLOAT64 = 4 * 2.0**-29
"""Scales a float32 error to float64: the ratio of the precisions, times 4 for safety (the scaled
error was measured at 0.45-0.99 of the true one)."""


@dataclass(frozen=True)
class Part:
    """One error source: a bound on ‖E‖₂, and how it is known."""

    name: str
    bound: float
    method: str


@dataclass(frozen=True)
class Floor:
    """The parts, their sum, and for comparison the customary max(m, n)·eps·σ₁."""

    parts: tuple[Part, ...]
    conventional: float

    @property
    def total(self) -> float:
        return sum(part.bound for part in self.parts)


class BlockDifferences:
    """‖J − J'‖₂ of two Jacobians in blocks: exact block norms, then the norm of their table.

    For a block matrix E, ‖E‖₂ ≤ ‖(‖E_ts‖₂)_ts‖₂: with equality where block-diagonal.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.table = np.zeros((rows, columns))

    def add(self, rows: tuple[int, ...], columns: tuple[int, ...], first: Matrix, second: Matrix) -> None:
        """Blocks (k, d_out, d_in) of both at the same places."""
        pairs = zip(first, second, strict=True)
        norms = one_per_core(lambda pair: norm2(np.subtract(*pair, dtype=np.float64)), pairs)
        self.table[list(rows), list(columns)] = norms

    @property
    def bound(self) -> float:
        return norm2(self.table)


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


def arithmetic(differences: BlockDifferences, dtype: str) -> Part:
    """The part of the model's own arithmetic, from the Jacobian in the other precision."""
    if dtype == "float32":
        return Part(
            "model arithmetic", differences.bound, "measured: float32 J against float64 J at the same x, block by block"
        )
    return Part(
        "model arithmetic",
        FLOAT32_TO_FLOAT64 * differences.bound,
        "measured: float32 J against float64 J at the same x, block by block, scaled by 2⁻²⁹ · 4",
    )


def assumed_arithmetic(energy: float, dtype: str) -> Part:
    """For a function that cannot be evaluated in a second precision: 16·eps·‖J‖_F."""
    bound = 16 * float(np.finfo(dtype).eps) * float(np.sqrt(energy))
    return Part("model arithmetic", bound, "assumed: 16·eps·‖J‖_F, no second precision at hand")
