"""How surely a bound holds, in one word; and how much rounding is taken for granted."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

CERTAIN, PROBED, CALIBRATED, SAMPLED, ASSUMED = "certain", "99.9 %", "calibrated", "sampled", "assumed"
CONFIDENCE = {
    CERTAIN: "a theorem, applied to all that there is",
    PROBED: "fails for at most one in a thousand draws of the random vectors, whatever the error is; "
    "the draw is the same every time, so this holds for matrices that were chosen without knowledge of it",
    CALIBRATED: "estimated: computed again with every operation perturbed by its rounding; the factor 2 was checked against "
    "hundreds of digits",
    SAMPLED: "the worst of a random sample, with a margin; the method says how many were drawn",
    ASSUMED: "not measured: a conservative model",
}
"""What a confidence can be, from the surest down."""
CHANCE = 1e-3
"""That a bound known at 99.9 % fails, where it does not say."""
ROUNDING = 16.0
"""In units of eps·√N·σ₁. LAPACK's SVD erred by at most 4.5 of them, on matrices of ones, and by about 1
on Gaussian ones (`benchmarks/svd_error.py`); the factor leaves more than three times the worst."""


ROUNDINGS = 16.0
"""Times the measured effect of rounding that a product or a derivative may be off. Of 300 hostile blocks no right one was off by
more than once it; float16 inside of float32 is by 1e4 times, float32 inside of float64 by 5e8."""


class Bounded(Protocol):
    """What is known with some confidence; `chance`: the probability that it fails, where random vectors were drawn."""

    @property
    def confidence(self) -> str: ...
    @property
    def chance(self) -> float: ...


def weakest(parts: Iterable[Bounded]) -> str:
    """How surely all bounds hold at once: the confidence of the least sure, or, where that is a probability, 1 minus the
    sum of the chances, such as "99.8 %", rounded down (but for what a sum of many chances itself is rounded by)."""
    parts, order = tuple(parts), list(CONFIDENCE)
    word = max((part.confidence for part in parts), key=order.index)
    if word != PROBED:
        return word
    chances = (part.chance or (CHANCE if part.confidence == PROBED else 0.0) for part in parts)
    tenths = max(1, math.ceil(1000 * math.fsum(chances) - 1e-9))
    return f"{max(0, 1000 - tenths) / 10:.1f} %"


def tolerance(sigma1: float, size: int, dtype: Any) -> float:
    """16·eps·√N·σ₁, and the rounding of numbers next to zero."""
    kind = np.finfo(dtype)
    return ROUNDING * float(kind.eps) * float(np.sqrt(size)) * sigma1 + float(kind.smallest_subnormal)


def allowed_energy(size: int, dtype: Any) -> float:
    """By how much Σσ² may differ from ‖A‖_F², relative to either: 16·eps·√N."""
    return 16 * float(np.finfo(dtype).eps) * float(np.sqrt(size))
