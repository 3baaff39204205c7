"""The rank at a threshold as an interval with a flag."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tightpass.errors import VerificationError

Values = NDArray[np.floating[Any]]

LABELS = ("noise", "doubtful", "signal")


@dataclass(frozen=True)
class Rank:
    """How many true singular values exceed `tau`: between lo and hi.

    flag       "certified" (lo = hi), "interval" (hi − lo ≤ max(1, 1 % of hi)), "ambiguous", or "not converged"
               where values that are not known may lie above tau
    nearest    the threshold nearest to tau at which the rank is certain (no σ̂ within the floor);
               None where kinks leave it open at any threshold
    """

    tau: float
    lo: int
    hi: int
    flag: str
    nearest: float | None

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
) -> Rank:
    """The Weyl interval #{σ̂ > τ+f} .. #{σ̂ > τ−f}, cut by a structural bound.

    values   computed singular values, descending
    bound    structural upper bound, kinks already in it
    kinks    undecided ReLU units; each widens the interval by one at either end
    total    how many singular values there are; of those beyond the given ones, `hidden`, nothing is taken for granted but
    rest     an upper bound on the sum of their squares: at most ⌊rest/τ²⌋ of them exceed τ

    Raises VerificationError if more values are certain than the structure allows.
    """
    lo = max(int(np.sum(values > tau + floor)) - kinks, 0)
    total = len(values) if total is None else total
    hidden = above_by_energy(total - len(values), rest, tau)
    hi = min(int(np.sum(values > tau - floor)) + kinks + hidden, bound, total)
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
    return Rank(tau, lo, hi, flag, None if open_end else nearest_certain(values, floor, tau))


def above_by_energy(count: int, rest: float, tau: float) -> int:
    """How many of `count` values whose squares add up to at most `rest` can exceed τ."""
    if count == 0 or not rest > 0:
        return 0
    most = rest / tau**2 if tau**2 > 0 else np.inf
    return count if most >= count else int(most)


def nearest_certain(values: Values, floor: float, tau: float) -> float | None:
    """The τ closest to the given one, in ratio, with no value within the floor of it."""
    upper = np.concatenate([[np.inf], values.astype(np.float64)])
    lower = np.concatenate([values.astype(np.float64), [-np.inf]])
    # τ may lie in [start, end] of each gap, a few ulps inside
    starts, ends = (lower + floor) * (1 + 1e-14), (upper - floor) * (1 - 1e-14)
    starts = np.maximum(starts, floor)  # below the floor nothing is known
    wide = starts <= ends
    if not np.any(wide):
        return None
    candidates = np.clip(tau, starts[wide], ends[wide])
    with np.errstate(divide="ignore"):
        ratios = np.abs(np.log(candidates / tau)) if tau > 0 else candidates
    return float(candidates[np.argmin(ratios)])


def labels(values: Values, floor: float) -> NDArray[np.int8]:
    """0 noise (≤ f), 1 doubtful, 2 signal (> 3f): indices into `LABELS`."""
    return ((values > floor).astype(np.int8) + (values > 3 * floor)).astype(np.int8)
