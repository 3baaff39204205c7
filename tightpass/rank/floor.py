"""How far can a computed singular value be from the true one? The floor and its parts.

|σᵢ(J + E) − σᵢ(J)| ≤ ‖E‖₂ (Weyl 1912), for each source of error E. The parts add up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tightpass.confidence import CERTAIN, weakest
from tightpass.errors import InputError
from tightpass.rank.records import Part
from tightpass.rank.rounding import add_up


@dataclass(frozen=True)
class Floor:
    """The parts, their sum, and for comparison the customary max(m, n)·eps·σ₁.

    Raises InputError where the sum, or the default threshold, twice it, is not finite: it would say nothing.
    """

    parts: tuple[Part, ...]
    conventional: float

    def __post_init__(self) -> None:
        if not math.isfinite(2 * self.total):
            largest = max(self.parts, key=lambda part: math.inf if math.isnan(part.bound) else part.bound)
            raise InputError(
                f"the floor is infinite, since its part {largest.name} is {largest.bound:.1e} ({largest.method}): "
                "numbers inside leave the range of float32 or float64; rescale the weights or the input"
            )

    @property
    def total(self) -> float:
        """The sum, rounded up."""
        total = 0.0
        for part in self.parts:
            total = float(add_up(total, part.bound))
        return total

    @property
    def confidence(self) -> str:
        """Of the sum: that of its least sure part."""
        return weakest(self.parts)


def storage(dtype: str) -> Part:
    """Blocks are stored in the precision that they are computed in."""
    return Part("storage", 0.0, f"none: stored in {dtype}", CERTAIN)
