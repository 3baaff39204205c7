"""Singular values and evidence -> a verdict: labels, floor, rank, falls, measures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tightpass.errors import InputError
from tightpass.jacobian.operator import Jacobian
from tightpass.jacobian.written import Written
from tightpass.rank.evidence import Evidence, collect
from tightpass.rank.floor import Floor, Part
from tightpass.rank.interval import LABELS, Rank, labels, rank_at
from tightpass.rank.knee import Fall, cliff, knees
from tightpass.rank.measures import Measures, measures
from tightpass.spectra.batched import Factors
from tightpass.spectra.exact import Source, cross_check, leading, singular_values

Array = NDArray[np.floating[Any]]
METHODS = ("auto", "exact")


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one Jacobian and what can be said of them.

    values     all singular values, descending
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
        return rank_at(self.values, self.floor.total, tau, self.evidence.bounds[0].rank, self.evidence.kinks)

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
        return measures(self.values)

    def __repr__(self) -> str:
        return f"Spectrum({self.name}: rank {self.rank} ({self.rank.flag}) of {len(self.values)}, floor {self.floor.total:.1e})"


def verdict(
    source: Source, evidence: Evidence, name: str, tokens: int, vectors: int = 0, factors: Factors | None = None
) -> Spectrum:
    """Decomposes a source that has been written out, by its factors where they are known, and judges it."""
    exact = singular_values(source, factors)
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


def check_method(method: str) -> None:
    """Raises InputError for an unknown method."""
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}, got {method!r}")


def spectrum(J: Jacobian, method: str = "auto", vectors: int = 0) -> Spectrum:
    """All singular values of a Jacobian, with floor, labels and rank.

    method   "auto" or "exact" (the same, so far)
    vectors  how many leading singular vectors to keep as U, Vh, with residuals

    J is written out in memory. Raises VerificationError if the values cannot be verified.
    """
    check_method(method)
    if not isinstance(J, Jacobian):
        raise InputError(f"spectrum expects the result of tightpass.jacobian, got {type(J).__name__}")
    if vectors < 0:
        raise InputError(f"vectors must be at least 0, got {vectors}")
    written = Written.like(J)
    evidence = collect(J, written.kept.append)
    return verdict(written, evidence, J.name, J.tokens_in, vectors, J.factors)
