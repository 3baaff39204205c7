"""Singular values and what can be said of them: labels, rank, falls, measures."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tightpass import doors
from tightpass.confidence import allowed_energy
from tightpass.errors import InputError
from tightpass.rank.floor import Floor
from tightpass.rank.interval import LABELS, Rank, labels, rank_at
from tightpass.rank.knee import Fall, cliff, knees
from tightpass.rank.measures import Measures, measures, measures_of_leading
from tightpass.rank.records import Evidence

if TYPE_CHECKING:  # takes half a second, where tables are not asked for
    import pandas as pd

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class KnownZeros:
    """`count` singular values that are zero for structural reasons; `largest` is the largest that came out."""

    count: int
    largest: float


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one Jacobian and what can be said of them.

    values     all singular values, descending; or the leading ones of `total`
    blocks     token that each value belongs to, for block-diagonal Jacobians
    floor      bound on |σ̂ − σ|, in parts
    evidence   structural bounds, kinks, active units
    method     the route that computed the values; `checks` what verified them
    U, Vh, residuals    leading singular vectors where asked for: (M, k), (k, N), (k,)
    tokens, tokens_out    tokens of x, and of y where those are not as many
    """

    name: str
    tokens: int
    values: Array
    blocks: NDArray[np.int64] | None
    floor: Floor
    evidence: Evidence
    method: str
    checks: tuple[str, ...]
    U: Array | None = None
    Vh: Array | None = None
    residuals: Array | None = None
    total: int | None = None
    tokens_out: int | None = None

    @property
    def size(self) -> int:
        """How many singular values there are."""
        return len(self.values) if self.total is None else self.total

    @property
    def partial(self) -> bool:
        """Whether some values are not known."""
        return len(self.values) < self.size

    def right(self, i: int) -> Array:
        """The direction of x that is passed with the gain σᵢ, i from 0, as (tokens, features): `(S.right(0) * x).sum()` is how
        much of it there is in activations x. Raises InputError where so many vectors were not kept."""
        return self._vector(self.Vh, i, self.tokens)

    def left(self, i: int) -> Array:
        """What y receives of `right(i)`, but for the gain: uᵢ as (tokens, features), J vᵢ = σᵢ uᵢ. Raises InputError likewise."""
        tokens = self.tokens if self.tokens_out is None else self.tokens_out
        return self._vector(None if self.U is None else self.U.T, i, tokens)

    def _vector(self, kept: Array | None, i: int, tokens: int) -> Array:
        """The i-th of those kept, in rows, by token."""
        if kept is None or not len(kept):
            raise InputError(f"no singular vectors of {self.name} were kept; ask for some by vectors=, or --vectors")
        vector: Array = kept[doors.whole("a singular vector", i, 0, len(kept))]
        return vector.reshape(tokens, -1)

    @cached_property
    def codes(self) -> NDArray[np.int8]:
        """Labels as indices into `LABELS`."""
        return labels(self.values, self.floor.total)

    @property
    def labels(self) -> NDArray[np.str_]:
        """ "noise", "doubtful" or "signal" for each value."""
        return np.array(LABELS)[self.codes]

    def rank_at(self, tau: float) -> Rank:
        """The number of true singular values above `tau` (same units as J): interval, flag and confidence."""
        tau = _threshold(tau)
        bound, kinks, floor = self.evidence.bounds[0].rank, self.evidence.kinks, self.floor
        return rank_at(self.values, floor.total, tau, bound, kinks, self.size, self.rest, floor.confidence)

    @cached_property
    def rest(self) -> float:
        """An upper bound on the sum of the squares of the true singular values that are not known; infinite where ‖J‖_F²
        is an estimate.

        The true ‖J‖_F is at most ‖Ĵ‖_F + ‖E‖_F; in runs of before, ‖Ĵ‖_F was taken to be right to 16·eps·√N and ‖E‖_F to be
        at most √N times the floor's part.
        """
        if not self.partial:
            return 0.0
        if self.evidence.estimated:
            return float("inf")
        excess = self.evidence.excess
        if excess is None:
            slack = allowed_energy(self.size, self.values.dtype) * math.sqrt(self.evidence.energy)
            excess = slack + math.sqrt(self.size) * self.evidence.arithmetic.bound
        whole = math.sqrt(self.evidence.energy) + excess
        known = np.maximum(self.values.astype(np.float64) - self.floor.total, 0)
        return max(whole**2 - math.fsum(known**2), 0.0)

    def rank_curve(self, taus: ArrayLike | None = None) -> pd.DataFrame:
        """The rank at many thresholds: columns tau, lo, hi, flag, confidence.

        taus   200 from the floor to beyond σ₁, evenly spaced in their logarithms, if left out

        Raises InputError for what is no threshold.
        """
        import pandas as pd

        if taus is None:
            top = max(2 * float(self.values[0]), 2 * self.floor.total, 1e-300)
            taus = np.geomspace(max(self.floor.total, top * 1e-18), top, 200)
        ranks = [self.rank_at(tau) for tau in _thresholds(taus)]
        columns = ["tau", "lo", "hi", "flag", "confidence"]
        return pd.DataFrame([(r.tau, r.lo, r.hi, r.flag, r.confidence) for r in ranks], columns=columns)

    def by_token(self) -> pd.DataFrame:
        """What each token passes, of a block-diagonal J: sigma_1, rank_low, rank_high (at the default threshold),
        stable_rank, effective_rank, indexed by token. Undecided units widen the ranks of their tokens.

        Raises InputError where tokens are mixed, so that a singular value belongs to no token.
        """
        import pandas as pd

        if self.blocks is None:
            raise InputError(f"{self.name} mixes tokens; only the values of an MLP belong to a token each")
        rows = []
        for t in range(self.tokens):
            own = self.values[self.blocks == t]
            rank = rank_at(own, self.floor.total, self.rank.tau, len(own), self.evidence.kinks_of(t))
            m = measures(own)
            rows.append((t, float(own[0]), rank.lo, rank.hi, m.stable_rank, m.effective_rank))
        columns = ["token", "sigma_1", "rank_low", "rank_high", "stable_rank", "effective_rank"]
        return pd.DataFrame(rows, columns=columns).set_index("token")

    @cached_property
    def known_zeros(self) -> KnownZeros | None:
        """Computed values that the structure says are zero; None where it says so of none, or not all are known."""
        count = self.size - self.evidence.bounds[0].rank
        if self.partial or count <= 0:
            return None
        return KnownZeros(count, float(self.values[-count]))

    @cached_property
    def rank(self) -> Rank:
        """The rank at twice the floor, the default threshold."""
        return self.rank_at(2 * self.floor.total)

    @cached_property
    def cliff(self) -> Fall | None:
        return cliff(self.values, self.floor.total)

    @cached_property
    def knees(self) -> tuple[Fall, ...]:
        return knees(self.values, self.floor.total)

    @cached_property
    def measures(self) -> Measures:
        return measures_of_leading(self.values, self.evidence.energy) if self.partial else measures(self.values)

    def __repr__(self) -> str:
        return (
            f"Spectrum({self.name}: rank {self.rank} ({self.rank.words}) of {self.size}, floor {self.floor.total:.1e})"
        )


def _threshold(tau: Any) -> float:
    """As a float. Raises InputError for what is no number ≥ 0 that a float holds."""
    try:
        value = float(tau) if isinstance(tau, Real) and not isinstance(tau, bool) else math.nan
    except OverflowError:  # an integer of that size
        value = math.inf
    if not 0 <= value <= sys.float_info.max:
        raise InputError(f"a threshold is a number ≥ 0 within float64's range, got {doors.shown(tau)}")
    return value


def _thresholds(taus: Any) -> Iterator[Any]:
    """One threshold or several, one after the other, whatever each of them is. Raises InputError for other shapes."""
    try:
        listed = np.asarray(taus)
    except (TypeError, ValueError, RuntimeError):  # lists of uneven lists; tensors that ask for gradients
        listed = None
    if listed is None or listed.ndim > 1:
        raise InputError(f"thresholds are one number or a list of numbers, got {doors.shown(taus)}")
    yield from np.atleast_1d(listed)
