"""Sums in float64 that are rounded in a known direction, so that a comparison with one is exact.

For a double σ and real s: σ > s if and only if σ > `add_down`, and σ ≤ s if and only if σ ≤ `add_down`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Doubles = NDArray[np.float64]


def add_down(a: ArrayLike, b: ArrayLike) -> Doubles:
    """The largest doubles that are at most a + b."""
    total, error = _two_sum(a, b)
    return np.asarray(np.where(error < 0, np.nextafter(total, -np.inf), total))


def add_up(a: ArrayLike, b: ArrayLike) -> Doubles:
    """The smallest doubles that are at least a + b."""
    total, error = _two_sum(a, b)
    return np.asarray(np.where(error > 0, np.nextafter(total, np.inf), total))


def below(a: ArrayLike, b: ArrayLike) -> Doubles:
    """The largest doubles that are less than a + b."""
    total, error = _two_sum(a, b)
    return np.asarray(np.where(error > 0, total, np.nextafter(total, -np.inf)))


def _two_sum(a: ArrayLike, b: ArrayLike) -> tuple[Any, Any]:
    """The rounded sum and what rounding took, exactly (Knuth); NaN is taken where the sum is not finite."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        total = x + y
        back = total - x
        return total, (x - (total - back)) + (y - back)
