"""Singular values and evidence -> a verdict: labels, floor, rank, falls, measures."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from tightpass.errors import InputError, VerificationError
from tightpass.rank.evidence import Evidence
from tightpass.rank.floor import Floor, storage, svd_part
from tightpass.rank.interval import LABELS, Rank, labels, rank_at
from tightpass.rank.knee import Fall, cliff, knees
from tightpass.rank.measures import Measures, measures, measures_of_leading
from tightpass.spectra.batched import Factors
from tightpass.spectra.exact import Source, cross_check, leading, singular_values
from tightpass.spectra.verify import allowed_energy

Array = NDArray[np.floating[Any]]
METHODS = ("auto", "exact", "topk")


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

    @property
    def size(self) -> int:
        """How many singular values there are."""
        return len(self.values) if self.total is None else self.total

    @property
    def partial(self) -> bool:
        """Whether some values are not known."""
        return len(self.values) < self.size

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
        if not isinstance(tau, Real) or not 0 <= tau <= sys.float_info.max:
            raise InputError(f"a threshold is a number ≥ 0 within float64's range, got {tau}")
        bound, kinks, floor = self.evidence.bounds[0].rank, self.evidence.kinks, self.floor
        return rank_at(self.values, floor.total, float(tau), bound, kinks, self.size, self.rest, floor.confidence)

    @cached_property
    def rest(self) -> float:
        """An upper bound on the sum of the squares of the true singular values that are not known; infinite where ‖J‖_F²
        is an estimate.

        ‖Ĵ‖_F is taken to be right to 16·eps·√N; the true ‖J‖_F is at most ‖Ĵ‖_F + ‖E‖_F, and ‖E‖_F ≤ √N·‖E‖₂.
        """
        if not self.partial:
            return 0.0
        if self.evidence.estimated:
            return float("inf")
        slack = 1 + allowed_energy(self.size, self.values.dtype)
        whole = math.sqrt(self.evidence.energy) * slack + math.sqrt(self.size) * self.evidence.arithmetic.bound
        known = np.maximum(self.values.astype(np.float64) - self.floor.total, 0)
        return max(whole**2 - math.fsum(known**2), 0.0)

    def rank_curve(self, taus: ArrayLike | None = None) -> pd.DataFrame:
        """The rank at many thresholds: columns tau, lo, hi, flag, confidence.

        taus   200 from the floor to beyond σ₁, evenly spaced in their logarithms, if left out
        """
        if taus is None:
            top = max(2 * float(self.values[0]), 2 * self.floor.total, 1e-300)
            taus = np.geomspace(max(self.floor.total, top * 1e-18), top, 200)
        ranks = [self.rank_at(float(tau)) for tau in np.atleast_1d(np.asarray(taus, dtype=np.float64))]
        columns = ["tau", "lo", "hi", "flag", "confidence"]
        return pd.DataFrame([(r.tau, r.lo, r.hi, r.flag, r.confidence) for r in ranks], columns=columns)

    def by_token(self) -> pd.DataFrame:
        """What each token passes, of a block-diagonal J: sigma_1, rank_low, rank_high (at the default threshold),
        stable_rank, effective_rank, indexed by token. Undecided units widen the ranks of their tokens.

        Raises InputError where tokens are mixed, so that a singular value belongs to no token.
        """
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


def verdict(
    source: Source,
    evidence: Evidence,
    name: str,
    tokens: int,
    vectors: int = 0,
    factors: Factors | None = None,
    memory: int | None = None,
) -> Spectrum:
    """Decomposes a source that has been written out, by its factors where they are known, and judges it."""
    exact = singular_values(source, factors, memory)
    error, checks = cross_check(exact)
    dtype = exact.values.dtype
    sigma1 = float(exact.values[0])
    floor = Floor(
        (evidence.arithmetic, storage(str(dtype)), svd_part(error)),
        conventional=max(source.shape) * float(np.finfo(dtype).eps) * sigma1,
    )
    triplets = leading(source, exact, vectors) if vectors else None
    found = Spectrum(
        name=name,
        tokens=tokens,
        values=exact.values,
        blocks=exact.blocks,
        floor=floor,
        evidence=evidence,
        method=f"exact: {exact.route}",
        checks=checks,
        U=None if triplets is None else triplets.U,
        Vh=None if triplets is None else triplets.Vh,
        residuals=None if triplets is None else triplets.residuals,
    )
    return replace(found, checks=(*checks, *cross_examined(found)))


def cross_examined(s: Spectrum) -> tuple[str, ...]:
    """What else was held against the floor, in words: a second route, and directions and values that must be zero.

    Raises VerificationError where one of these is larger than the floor, which is then too small.
    """
    checks, floor, null = [], s.floor.total, s.evidence.explanation.null
    if s.evidence.agreement is not None:
        checks.append(
            f"blocks times a random vector against a product that does not form J: {s.evidence.agreement:.0e}"
        )
    if null is not None:
        if null > s.evidence.arithmetic.bound:
            raise VerificationError(
                f"{s.name}: J has gain {null:.1e} along directions that the LayerNorm removes, "
                f"more than the floor's part of the model's arithmetic, {s.evidence.arithmetic.bound:.1e}"
            )
        checks.append(f"gain {null:.0e} along directions that the LayerNorm removes, the floor is {floor:.0e}")
    if s.known_zeros is not None:
        if s.known_zeros.largest > floor:
            raise VerificationError(
                f"{s.name}: a singular value that structure says is zero came out as {s.known_zeros.largest:.1e}, "
                f"more than the floor, {floor:.1e}"
            )
        zeros = s.known_zeros
        checks.append(f"{zeros.count} values that are zero by structure: the largest is {zeros.largest:.0e}")
    return tuple(checks)


def check_k(method: str, k: int | None, vectors: int) -> None:
    """Raises InputError for a k without "topk", below one, or for more vectors than values."""
    if k is None:
        return
    if method != "topk":
        raise InputError(f"k is how many values method topk finds; method {method} finds all of them")
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise InputError(f"k must be a whole number, got {k!r}")
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    if vectors > k:
        raise InputError(f"vectors must be at most k = {k}, got {vectors}")


def check_method(method: str) -> None:
    """Raises InputError for an unknown method."""
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
