"""The rank at a threshold as an interval with a flag."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tightpass.errors import VerificationError
from tightpass.rank.rounding import add_down, add_up, below

Values = NDArray[np.floating[Any]]

LABELS = ("noise", "doubtful", "signal")


@dataclass(frozen=True)
class Rank:
    """How many true singular values exceed `tau`: between lo and hi.

    flag       "certified" (lo = hi), "interval" (hi − lo ≤ max(1, 1 % of hi)), "ambiguous", or "not converged"
               where values that are not known may lie above tau
    nearest    the threshold nearest to tau at which the rank is certain (no σ̂ within the floor);
               None where kinks leave it open at any threshold
    confidence how surely the floor holds, hence all of this (`rank.floor`)
    """

    tau: float
    lo: int
    hi: int
    flag: str
    nearest: float | None
    confidence: str

    @property
    def words(self) -> str:
        """Flag and confidence, as they are shown together."""
        return f"{self.flag}, {self.confidence}"

    @property
    def interval(self) -> tuple[int, int]:
        return self.lo, self.hi

    def __str__(self) -> str:
        return str(self.lo) if self.lo == self.hi else f"{self.lo}–{self.hi}"


def rank_at(
    values: Values,
    floor: float,
    tau: float,
    bound: int,
    kinks: int = 0,
    total: int | None = None,
    rest: float = np.inf,
    confidence: str = "certain",
) -> Rank:
    """The Weyl interval #{σ̂ > τ+f} .. #{σ̂ > τ−f}, cut by a structural bound.

    values   computed singular values, descending, of any precision; compared as float64, and exactly
    bound    structural upper bound, kinks already in it
    kinks    undecided units and the like; each widens the interval by one at either end
    total    how many singular values there are; of those beyond the given ones, `hidden`, nothing is taken for granted but
    rest     an upper bound on the sum of their squares: at most ⌊rest/τ²⌋ of them exceed τ
    confidence  how surely the floor holds

    Raises VerificationError if more values are certain than the structure allows.
    """
    floor, tau = float(floor), float(tau)
    lo = max(above(values, add_down(tau, floor)) - kinks, 0)
    total = len(values) if total is None else total
    hidden = above_by_energy(total - len(values), rest, tau)
    hi = min(above(values, add_down(tau, -floor)) + kinks + hidden, bound, total)
    if lo > hi:
        raise VerificationError(
            f"{lo} singular values exceed {tau:.3e} + {floor:.1e}, but structure allows {bound}: floor, bound or SVD is wrong"
        )
    if lo == hi:
        flag = "certified"
    elif hidden:
        flag = "not converged"
    else:
        flag = "interval" if hi - lo <= max(1.0, 0.01 * hi) else "ambiguous"
    open_end = kinks or len(values) < total
    return Rank(tau, lo, hi, flag, None if open_end else nearest_certain(values, floor, tau), confidence)


def above(values: Values, threshold: ArrayLike) -> int:
    """How many values exceed a threshold, which must not be rounded to their precision."""
    return int(np.sum(np.asarray(values, dtype=np.float64) > np.asarray(threshold, dtype=np.float64)))


def above_by_energy(count: int, rest: float, tau: float) -> int:
    """How many of `count` values whose squares add up to at most `rest` can exceed τ."""
    if count == 0 or not rest > 0:
        return 0
    if tau == 0 or not np.isfinite(rest):
        return count
    return min(count, int(Fraction(float(rest)) / Fraction(float(tau)) ** 2))


def nearest_certain(values: Values, floor: float, tau: float) -> float | None:
    """The τ closest to the given one, in ratio, with no value within the floor of it."""
    wide = values.astype(np.float64)
    upper, lower = np.concatenate([[np.inf], wide]), np.concatenate([wide, [-np.inf]])
    # in a gap τ + f < upper and τ − f ≥ lower, and below the floor nothing is known
    starts, ends = np.maximum(add_up(lower, floor), floor), below(upper, -floor)
    inside = (starts <= ends) & np.isfinite(starts)
    if not np.any(inside):
        return None
    candidates = np.clip(tau, starts[inside], ends[inside])
    with np.errstate(divide="ignore"):
        ratios = np.abs(np.log(candidates) - np.log(tau)) if tau > 0 else candidates
    return float(candidates[np.argmin(ratios)])


def labels(values: Values, floor: float) -> NDArray[np.int8]:
    """0 noise (≤ f), 1 doubtful, 2 signal (> 3f): indices into `LABELS`."""
    wide = values.astype(np.float64)
    return (wide > floor).astype(np.int8) + (wide > add_down(2 * floor, floor))
