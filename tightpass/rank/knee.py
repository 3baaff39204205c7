"""Where a spectrum falls: the cliff into noise, and the knees above it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter
from scipy.special import fdtrc  # what scipy.stats.f computes; importing that takes half a second

from tightpass.rank.interval import above

Values = NDArray[np.floating[Any]]

UNLIKELY = 0.01
NEIGHBOURS = 8
STEEP = 1.2
MEDIAN_EFFICIENCY = 0.48
WIDTHS = (1, 2, 4, 8, 16, 32, 64)
LOOKED_AT = 100
ORDINARY = 3.0


@dataclass(frozen=True)
class Fall:
    """From value number `index` (counted from 1) to value number `index + width`: their ratio.

    chance   expected number of falls as unlikely, anywhere above the floor, if the falls were random
             with the local mean; None for the cliff
    """

    index: int
    ratio: float
    chance: float | None = None
    width: int = 1


def cliff(values: Values, floor: float) -> Fall | None:
    """From the last value above the floor down to max(next value, floor).

    None where there is no such fall: all values are above the floor, or none is.
    """
    count = above(values, floor)
    if count in (0, len(values)):
        return None
    bottom = max(float(values[count]), floor)
    return Fall(count, float(values[count - 1]) / bottom if bottom > 0 else float("inf"))


def knees(values: Values, floor: float, most: int = 3) -> tuple[Fall, ...]:
    """Falls above the floor that stand out from the local slope of log σ, steepest first.

    The fall after value i is g = log σᵢ − log σᵢ₊₁, and a knee is w = 1, 2, 4 .. 64 of them in a row. Their neighbours, the
    knee left out, have a mean ḡ, taken as median / ln 2 so that other knees do not hide it. Falls grow
    towards both ends of any spectrum, like 1/i at the top and like 1/(n − i) at the hard edge, so the
    neighbourhood reaches 8 (or 2w) plus a quarter of the distance to the nearer end, and for w > 1 the steeper of the two sides
    counts. Were falls independent and exponential around a common mean, as the spacings of a Poisson process are (Rényi
    1953), the mean of w falls over the mean of m neighbours would follow Fisher's F(2w, 2m); a
    median is worth 0.48 of its samples. A knee is a fall by a fifth or more of which at most 0.01 would be expected
    among all that were looked at; the same chance is given to every octave of i, so that the top of a long spectrum, where
    neighbours are few, is not drowned in its bulk (a weighted Bonferroni correction, weights 1/(i + 8)). Its edges are then drawn in to the falls of more than 3ḡ; of overlapping knees the less likely
    one is kept, and those that touch are joined.
    """
    logs = np.log(values[: above(values, floor)].astype(np.float64))
    falls = logs[:-1] - logs[1:]
    candidates = [found for w in WIDTHS if 4 * w <= len(falls) for found in _of_width(falls, w)]
    taken = np.zeros(len(falls), dtype=bool)
    kept: list[tuple[int, int, float]] = []
    for chance, start, width in sorted(candidates):
        if not taken[start : start + width].any():
            taken[start : start + width] = True
            kept.append((start, width, chance))
    found: list[Fall] = []
    for start, width, chance in sorted(kept):
        if found and found[-1].index + found[-1].width == start + 1:  # two that touch are one
            before = found.pop()
            start, width, chance = before.index - 1, before.width + width, min(before.chance or 0.0, chance)
        found.append(Fall(start + 1, float(np.exp(falls[start : start + width].sum())), chance, width))
    return tuple(sorted(found, key=lambda fall: -fall.ratio)[:most])


def _of_width(falls: Values, w: int) -> list[tuple[float, int, int]]:
    """(chance, first fall, number of falls) of the knees of w falls, drawn in."""
    n = len(falls)
    sums = np.convolve(falls, np.ones(w), mode="valid")
    usual = np.median(falls) + median_filter(falls, size=min(4 * max(w, NEIGHBOURS) + 1, n), mode="mirror")
    middle = usual[w // 2 : w // 2 + len(sums)]
    found = []
    for i in np.argsort(-sums / np.maximum(middle, 1e-12))[:LOOKED_AT]:
        start, stop = int(i), int(i) + w
        reach = max(NEIGHBOURS, 2 * w) + min(start, n - stop) // 4
        left, right = falls[max(0, start - reach) : start], falls[stop : stop + reach]
        if len(right) < NEIGHBOURS or (w > 1 and len(left) < NEIGHBOURS // 2):
            continue
        sides = [np.concatenate([left, right])] if w == 1 else [left, right]
        mean = max(max(float(np.median(side)) for side in sides) / np.log(2), 1e-12)
        samples = MEDIAN_EFFICIENCY * min(len(side) for side in sides)
        widths = 1 if start < NEIGHBOURS // 2 else len(WIDTHS)  # that have neighbours on both sides there
        looks = widths * (start + NEIGHBOURS) * np.log((n + NEIGHBOURS) / NEIGHBOURS)
        chance = float(looks * fdtrc(2 * w, 2 * samples, sums[start] / w / mean))
        steep = np.flatnonzero(falls[start:stop] > ORDINARY * mean)
        if chance >= UNLIKELY or not len(steep):
            continue
        first, last = start + int(steep[0]), start + int(steep[-1]) + 1
        if falls[first:last].sum() > np.log(STEEP):
            found.append((chance, first, last - first))
    return found
