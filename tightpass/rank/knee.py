"""Where a spectrum falls: the cliff into noise, and the knees above it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.floating[Any]]

CHANCE = 0.01
NEIGHBOURS = 8
STEEP = 1.2
MEDIAN_EFFICIENCY = 0.48


@dataclass(frozen=True)
class Fall:
    """Between value number `index` (counted from 1) and the next: their ratio.

    chance   expected number of falls as steep, anywhere above the floor, if the falls were random
             with the local mean; None for the cliff
    """

    index: int
    ratio: float
    chance: float | None = None


def cliff(values: Values, floor: float) -> Fall | None:
    """From the last value above the floor down to max(next value, floor).

    None where there is no such fall: all values are above the floor, or none is.
    """
    above = int(np.sum(values > floor))
    if above in (0, len(values)):
        return None
    bottom = max(float(values[above]), floor)
    return Fall(above, float(values[above - 1]) / bottom if bottom > 0 else float("inf"))


def knees(values: Values, floor: float, most: int = 3) -> tuple[Fall, ...]:
    """Falls above the floor that stand out from the local slope of log σ, steepest first.

    The fall after value i is g = log σᵢ − log σᵢ₊₁. Its neighbours on either side, itself left
    out, have a mean ḡ, taken as median / ln 2 so that other knees do not hide it. Falls grow
    towards both ends of any spectrum, like 1/i at the top and like 1/(n − i) at the hard edge, so the
    neighbourhood is 8 plus a quarter of the distance to the nearer end. Were falls exponentially
    distributed around a common mean (as spacings of a Poisson process are), a fall as steep would have
    probability (1 + g/(m·ḡ))^(−m), the predictive law of an exponential whose mean was estimated from
    m samples; a median is worth 0.48 of its samples. A knee is a fall by a fifth or more of
    which at most 0.01 would be expected among the n.
    """
    above = int(np.sum(values > floor))
    logs = np.log(values[:above].astype(np.float64))
    falls = logs[:-1] - logs[1:]
    n = len(falls)
    found = []
    for i in np.argsort(-falls)[: 50 * most]:
        reach = NEIGHBOURS + min(int(i), n - 1 - int(i)) // 4
        near = np.concatenate([falls[max(0, i - reach) : i], falls[i + 1 : i + 1 + reach]])
        if i + NEIGHBOURS >= n:
            continue
        local = max(float(np.median(near)) / np.log(2), 1e-12)
        m = MEDIAN_EFFICIENCY * len(near)
        chance = float(n * (1 + falls[i] / (m * local)) ** -m)
        if chance < CHANCE and falls[i] > np.log(STEEP):
            found.append(Fall(int(i) + 1, float(np.exp(falls[i])), chance))
    return tuple(found[:most])
