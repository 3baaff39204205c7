"""Do two spectra differ by more than their floors allow for?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tightpass.errors import InputError
from tightpass.rank.interval import Rank
from tightpass.rank.spectrum import Spectrum


@dataclass(frozen=True)
class Difference:
    """Two spectra A and B of one name, index by index.

    floor       f_A + f_B: two computed values of the same true one are at most this far apart
    kinks       undecided units, and the like, of both: J may differ by as many matrices of rank one
    compared    leading values that both have
    beyond      how many of them are farther apart
    index       number, counted from 1, of the value that is farthest apart; `apart` by how much; `values` the two
    ranks       of A and B at the same threshold, twice the larger floor
    """

    name: str
    floor: float
    kinks: int
    compared: int
    beyond: int
    index: int
    apart: float
    values: tuple[float, float]
    ranks: tuple[Rank, Rank]
    sizes: tuple[int, int]

    @property
    def ranks_differ(self) -> bool:
        """Whether no number lies in both rank intervals."""
        a, b = self.ranks
        return a.lo > b.hi or b.lo > a.hi

    @property
    def different(self) -> bool:
        """Whether A and B cannot be the spectrum of one matrix."""
        return self.beyond > 0 or self.ranks_differ or self.sizes[0] != self.sizes[1]

    def __str__(self) -> str:
        a, b = self.ranks
        parts = []
        if self.sizes[0] != self.sizes[1]:
            parts.append(f"{self.sizes[0]} and {self.sizes[1]} values in all")
        if self.beyond:
            parts.append(
                f"{self.beyond} of {self.compared} values differ beyond the floors, most value {self.index}: "
                f"{self.values[0]:.6g} and {self.values[1]:.6g}, {self.apart:.1e} apart = {self.floors:.3g} floors"
            )
        else:
            parts.append(
                f"none of {self.compared} values differs beyond the floors (at most {self.apart:.1e} = {self.floors:.2g} floors)"
            )
        if self.kinks:
            parts.append(f"{self.kinks} undecided units allowed for, each moves values by one place at most")
        parts.append(f"ranks {a} and {b}" + (" differ" if self.ranks_differ else " agree"))
        return f"{self.name}: {'different' if self.different else 'the same'}; {'; '.join(parts)}"

    @property
    def floors(self) -> float:
        """`apart` in units of `floor`."""
        return self.apart / self.floor if self.floor > 0 else (0.0 if self.apart == 0 else float("inf"))


def difference(a: Spectrum, b: Spectrum) -> Difference:
    """By Weyl's inequality for both: |σ̂_A − σ̂_B| ≤ f_A + f_B wherever the true values are the same.

    Where k units are undecided in A or in B, their J may differ by a matrix of rank k, and only σ_{i+k} ≤ σ_i across the
    two is left (Horn & Johnson 2013, §7.3): a value must lie between those k places below and above it.

    Raises InputError for anything but two spectra.
    """
    for s in (a, b):
        if not isinstance(s, Spectrum):
            raise InputError(f"difference expects two results of tightpass.spectrum, got {type(s).__name__}")
    compared = min(len(a.values), len(b.values))
    left, right = (s.values[:compared].astype(np.float64) for s in (a, b))
    kinks = a.evidence.kinks + b.evidence.kinks
    apart = outside(left, right, kinks)
    floor = a.floor.total + b.floor.total
    at = int(np.argmax(apart))
    tau = 2 * max(a.floor.total, b.floor.total)
    return Difference(
        name=a.name if a.name == b.name else f"{a.name} / {b.name}",
        floor=floor,
        kinks=kinks,
        compared=compared,
        beyond=int(np.sum(apart > floor)),
        index=at + 1,
        apart=float(apart[at]),
        values=(float(left[at]), float(right[at])),
        ranks=(a.rank_at(tau), b.rank_at(tau)),
        sizes=(a.size, b.size),
    )


def outside(left: NDArray[np.float64], right: NDArray[np.float64], places: int) -> NDArray[np.float64]:
    """How far each value of `left` lies outside of the interval from `places` below to `places` above it in `right`."""
    above = np.r_[np.full(places, np.inf), right][: len(left)]
    below = np.r_[right[places:], np.full(places, -np.inf)][: len(left)]
    beyond: NDArray[np.float64] = np.maximum(np.maximum(left - above, below - left), 0.0)
    return beyond
