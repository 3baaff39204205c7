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
    """

    stable_rank: float
    effective_rank: float
    participation: float
    energy_ranks: tuple[int, ...]


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
