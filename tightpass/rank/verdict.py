"""Singular values and evidence -> a verdict: labels, floor, rank, falls, measures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tightpass.errors import InputError
from tightpass.rank.evidence import Evidence
from tightpass.rank.floor import Floor, Part
from tightpass.rank.interval import LABELS, Rank, labels, rank_at
from tightpass.rank.knee import Fall, cliff, knees
from tightpass.rank.measures import Measures, measures, measures_of_leading
from tightpass.spectra.batched import Factors
from tightpass.spectra.exact import Source, cross_check, leading, singular_values

Array = NDArray[np.floating[Any]]
METHODS = ("auto", "exact", "topk")


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
        """The number of true singular values above `tau` (same units as J): interval and flag."""
        if not isinstance(tau, int | float | np.number) or not 0 <= tau < np.inf:
            raise InputError(f"a threshold is a number ≥ 0, got {tau}")
        return rank_at(self.values, self.floor.total, tau, self.evidence.bounds[0].rank, self.evidence.kinks, self.size)

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
            f"Spectrum({self.name}: rank {self.rank} ({self.rank.flag}) of {self.size}, floor {self.floor.total:.1e})"
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
        (
            evidence.arithmetic,
            Part("storage", 0.0, f"none: stored in {dtype}"),
            Part("SVD", error.bound, error.method),
        ),
        conventional=max(source.shape) * float(np.finfo(dtype).eps) * sigma1,
    )
    triplets = leading(source, exact, vectors) if vectors else None
    return Spectrum(
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


def check_k(method: str, k: int | None, vectors: int) -> None:
    """Raises InputError for a k without "topk", below one, or for more vectors than values."""
    if k is None:
        return
    if method != "topk":
        raise InputError(f"k is how many values method topk finds; method {method} finds all of them")
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    if vectors > k:
        raise InputError(f"vectors must be at most k = {k}, got {vectors}")


def check_method(method: str) -> None:
    """Raises InputError for an unknown method."""
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
