"""Soft measures of how many directions a spectrum uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHARES = (0.9, 0.99, 0.999)


@dataclass(frozen=True)
class Measures:
    """stable_rank    ‖J‖_F² / σ₁² (Rudelson & Vershynin 2007)
    effective_rank    exp of the entropy of σ/Σσ (Roy & Vetterli 2007)
    participation     (Σσ²)² / Σσ⁴
    energy_ranks      the k whose σ₁²..σ_k² carry 90, 99 and 99.9 % of Σσ²

    None is what the known values do not tell.
    """

    stable_rank: float
    effective_rank: float | None
    participation: float | None
    energy_ranks: tuple[int | None, ...]


def measures_of_leading(values: NDArray[np.floating[Any]], energy: float) -> Measures:
    """What the leading values and ‖J‖_F² tell."""
    if values[0] == 0:
        return Measures(0.0, None, None, (None,) * len(SHARES))
    carried = np.cumsum(np.square(values, dtype=np.float64)) / energy
    reached = [int(np.searchsorted(carried, share - 1e-15)) + 1 for share in SHARES]
    return Measures(energy / float(values[0]) ** 2, None, None, tuple(k if k <= len(values) else None for k in reached))


def measures(values: NDArray[np.floating[Any]]) -> Measures:
    """All measures of descending singular values; zeros for a zero spectrum."""
    if len(values) == 0 or values[0] == 0:
        return Measures(0.0, 0.0, 0.0, (0,) * len(SHARES))
    relative = values.astype(np.float64) / float(values[0])
    squares = relative**2
    total = float(squares.sum())
    p = relative / relative.sum()
    p = p[p > 0]
    carried = np.cumsum(squares) / total
    return Measures(
        total,
        float(np.exp(-(p * np.log(p)).sum())),
        total**2 / float((squares**2).sum()),
        tuple(int(np.searchsorted(carried, share - 1e-15)) + 1 for share in SHARES),
    )
