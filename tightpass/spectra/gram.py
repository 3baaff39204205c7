"""Singular values of float32 data through its float64 Gram matrix, summed a panel at a time.

σ² = λ(AᵀA). Squaring halves the digits: values below 1e-8 σ₁ are lost, which float32 data does not know either. For
float64 data that would be a loss, so it is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigvalsh

from tightpass.confidence import ASSUMED, allowed_energy
from tightpass.errors import InputError, VerificationError
from tightpass.spectra.verify import SvdError

Values = NDArray[np.floating[Any]]
STRIP = 512
"""Rows of the Gram matrix that are added at once: a product of all of them would take its memory once more."""
VALID = 1e-8
"""Values below this many σ₁ are not this route's to tell."""


@dataclass(frozen=True)
class GramValues:
    """values (n,) float32, descending; `unknown` of them, the last, lie below 1e-8 σ₁ and are bounds, not values."""

    values: Values
    unknown: int
    energy: float

    @property
    def error(self) -> SvdError:
        sigma1, n = float(self.values[0]), len(self.values)
        lost = f"; {self.unknown} values below {VALID:.0e} σ₁ are left to an exact route" if self.unknown else ""
        bound = np.sqrt(float(np.finfo(np.float64).eps) * np.sqrt(n)) + 2 * float(np.finfo(np.float32).eps)
        return SvdError(float(bound) * sigma1, f"assumed: √(eps·√N)·σ₁ of the float64 Gram matrix{lost}", ASSUMED)


def gram_values(panels: Iterable[tuple[NDArray[Any], slice]], n: int) -> GramValues:
    """All min(·, n) singular values of a matrix of n columns that comes in groups of whole rows.

    panels   (rows, columns): float32 rows (k, c), and which columns they have; the others are zero

    Raises InputError for other data than float32, VerificationError if the eigenvalues do not add up.
    """
    G = np.zeros((n, n))
    energy, rows = 0.0, 0
    for panel, columns in panels:
        if panel.dtype != np.float32:
            raise InputError(
                f"the Gram route is for float32 data, got {panel.dtype}: squares would lose half its digits"
            )
        wide = panel.astype(np.float64)
        energy += float(np.vdot(wide, wide))
        rows += len(panel)
        for start in range(0, wide.shape[1], STRIP):
            part = wide[:, start : start + STRIP]
            at = columns.start + start
            G[at : at + part.shape[1], columns] += part.T @ wide
    if not np.isfinite(energy):
        raise VerificationError("Gram route: the matrix has entries that are not finite")
    squares = eigvalsh(G.T, overwrite_a=True, check_finite=False)[::-1][: min(rows, n)]
    total = float(squares.sum())
    if not (np.all(np.isfinite(squares)) and abs(total - energy) <= allowed_energy(n, np.float64) * energy):
        raise VerificationError(
            f"Gram route: eigenvalues add up to {total:.17g}, the entries' squares to {energy:.17g}"
        )
    values = np.sqrt(np.maximum(squares, 0)).astype(np.float32)
    return GramValues(values, int(np.sum(values < VALID * values[0])), energy)
