"""Do two spectra differ by more than their floors allow for?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tightpass.rank.interval import Rank
from tightpass.rank.verdict import Spectrum


@dataclass(frozen=True)
class Difference:
    """Two spectra A and B of one name, index by index.

    floor       f_A + f_B: two computed values of the same true one are at most this far apart
    compared    leading values that both have
    beyond      how many of them are farther apart
    index       number, counted from 1, of the value that is farthest apart; `apart` by how much; `values` the two
    ranks       of A and B at the same threshold, twice the larger floor
    """

    name: str
    floor: float
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
        parts.append(f"ranks {a} and {b}" + (" differ" if self.ranks_differ else " agree"))
        return f"{self.name}: {'different' if self.different else 'the same'}; {'; '.join(parts)}"

    @property
    def floors(self) -> float:
        """`apart` in units of `floor`."""
        return self.apart / self.floor if self.floor > 0 else (0.0 if self.apart == 0 else float("inf"))


def difference(a: Spectrum, b: Spectrum) -> Difference:
    """By Weyl's inequality for both: |σ̂_A − σ̂_B| ≤ f_A + f_B wherever the true values are the same."""
    compared = min(len(a.values), len(b.values))
    left, right = (s.values[:compared].astype(np.float64) for s in (a, b))
    apart = np.abs(left - right)
    floor = a.floor.total + b.floor.total
    at = int(np.argmax(apart))
    tau = 2 * max(a.floor.total, b.floor.total)
    return Difference(
        name=a.name if a.name == b.name else f"{a.name} / {b.name}",
        floor=floor,
        compared=compared,
        beyond=int(np.sum(apart > floor)),
        index=at + 1,
        apart=float(apart[at]),
        values=(float(left[at]), float(right[at])),
        ranks=(a.rank_at(tau), b.rank_at(tau)),
        sizes=(a.size, b.size),
    )
