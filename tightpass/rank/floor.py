"""How far can a computed singular value be from the true one? The floor and its parts.

|σᵢ(J + E) − σᵢ(J)| ≤ ‖E‖₂ (Weyl 1912), for each source of error E. The parts add up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from tightpass.errors import InputError
from tightpass.rank.rounding import add_up
from tightpass.spectra.twostage import PROBED
from tightpass.spectra.verify import ASSUMED, CERTAIN, SAMPLED, SvdError

CALIBRATED = "calibrated"
CONFIDENCE = {
    CERTAIN: "a theorem, applied to all that there is",
    PROBED: "fails for at most one in a thousand draws of the random vectors, whatever the error is; "
    "the draw is the same every time, so this holds for matrices that were chosen without knowledge of it",
    CALIBRATED: "estimated: computed again with every operation perturbed by its rounding; the factor 2 was checked against "
    "hundreds of digits",
    SAMPLED: "the worst of a random sample, with a margin; the method says how many were drawn",
    ASSUMED: "not measured: a conservative model",
}
"""What the confidence of a part can be, from the surest down."""
CHANCE = 1e-3
"""That a bound known at 99.9 % fails, where its part does not say."""


@dataclass(frozen=True)
class Part:
    """One error source: a bound on ‖E‖₂, how it is known, and how surely (a key of `CONFIDENCE`).

    chance   the probability that the bound fails, where random vectors were drawn
    """

    name: str
    bound: float
    method: str
    confidence: str
    chance: float = 0.0


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


def weakest(parts: Iterable[Part]) -> str:
    """How surely all bounds hold at once: the confidence of the least sure, or, where that is a probability, 1 minus the
    sum of the chances, such as "99.8 %", rounded down (but for what a sum of many chances itself is rounded by)."""
    parts, order = tuple(parts), list(CONFIDENCE)
    word = max((part.confidence for part in parts), key=order.index)
    if word != PROBED:
        return word
    chances = (part.chance or (CHANCE if part.confidence == PROBED else 0.0) for part in parts)
    tenths = max(1, math.ceil(1000 * math.fsum(chances) - 1e-9))
    return f"{max(0, 1000 - tenths) / 10:.1f} %"


def storage(dtype: str) -> Part:
    """Blocks are stored in the precision that they are computed in."""
    return Part("storage", 0.0, f"none: stored in {dtype}", CERTAIN)


def svd_part(error: SvdError) -> Part:
    return Part("SVD", error.bound, error.method, error.confidence, error.chance)
