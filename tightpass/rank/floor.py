"""How far can a computed singular value be from the true one? The floor and its parts.

|σᵢ(J + E) − σᵢ(J)| ≤ ‖E‖₂ (Weyl 1912), for each source of error E. The parts add up.
"""

from __future__ import annotations

from dataclasses import dataclass

from tightpass.spectra.twostage import PROBED
from tightpass.spectra.verify import ASSUMED, CERTAIN, SAMPLED, SvdError

CALIBRATED = "calibrated"
CONFIDENCE = {
    CERTAIN: "a theorem, applied to all that there is",
    PROBED: "holds for all but one in a thousand draws of the random probes, whatever the error is",
    CALIBRATED: "measured in another precision and scaled; the factor 4 was checked against extended precision",
    SAMPLED: "the worst of a random sample, with a margin; the method says how many were drawn",
    ASSUMED: "not measured: a conservative model",
}
"""What the confidence of a part can be, from the surest down."""


@dataclass(frozen=True)
class Part:
    """One error source: a bound on ‖E‖₂, how it is known, and how surely (a key of `CONFIDENCE`)."""

    name: str
    bound: float
    method: str
    confidence: str


@dataclass(frozen=True)
class Floor:
    """The parts, their sum, and for comparison the customary max(m, n)·eps·σ₁."""

    parts: tuple[Part, ...]
    conventional: float

    @property
    def total(self) -> float:
        return sum(part.bound for part in self.parts)

    @property
    def confidence(self) -> str:
        """Of the sum: that of its least sure part."""
        order = list(CONFIDENCE)
        return max((part.confidence for part in self.parts), key=order.index)


def storage(dtype: str) -> Part:
    """Blocks are stored in the precision that they are computed in."""
    return Part("storage", 0.0, f"none: stored in {dtype}", CERTAIN)


def svd_part(error: SvdError) -> Part:
    return Part("SVD", error.bound, error.method, error.confidence)
