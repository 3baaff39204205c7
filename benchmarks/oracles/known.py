"""Matrices with known singular values, moved by perturbations of known norm: what an interval is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

import tightpass as tp
from tightpass.evidence.judge import verdict
from tightpass.jacobians.written import Written
from tightpass.rank.interval import Rank
from tightpass.rank.records import Bound, Evidence, Part
from tightpass.rank.spectrum import Spectrum
from tightpass.structure import Panel

SEEDS = 20
NOISE = {"float64": (-12.0, -2.0), "float32": (-6.0, -2.0)}
"""Decades of the perturbations' norms: in float32 from a little above the rounding of the entries."""
CONSTRUCTION = 2e-14
"""Relative error of U·diag(σ)·Vᵀ itself, in roundings of its two products."""


def step(rng, n, f):
    r = int(rng.integers(1, n))
    return np.r_[np.ones(r), np.zeros(n - r)]


def low_rank(rng, n, f):
    r = int(rng.integers(1, n))
    return np.r_[np.sort(10 ** rng.uniform(-1, 0, r))[::-1], np.zeros(n - r)]


def spiked(rng, n, f):
    """A few large values over a bulk that stays clear of the floor."""
    r = int(rng.integers(1, 6))
    top = 10 ** rng.uniform(-0.5, 0, r)
    bulk = max(top.min() / 30, 40 * f)
    return np.sort(np.r_[top, bulk * rng.uniform(0.5, 1, n - r)])[::-1]


def clustered(rng, n, f):
    """Three levels of equal values to within 1e-9, none within a decade of the floor."""
    levels = np.array([1.0, np.sqrt(20 * f), 0.0])
    return np.sort(levels[rng.integers(0, 3, n)] * (1 + 1e-9 * rng.standard_normal(n)))[::-1]


def exponential(rng, n, f):
    """So steep that one value at most lies between one floor and three."""
    return rng.uniform(10, 30) ** -np.arange(n, dtype=float)


def slow_exponential(rng, n, f):
    return np.exp(-rng.uniform(0.05, 0.8) * np.arange(n))


def polynomial(rng, n, f):
    return np.arange(1, n + 1, dtype=float) ** -rng.uniform(0.5, 4)


def gapless(rng, n, f):
    return np.linspace(1, 0, n)


def straddling(rng, n, f):
    """Clusters at the floor's own height: nobody could tell."""
    return np.r_[np.ones(n // 3), np.full(n - n // 3, 2 * f) * rng.uniform(0.5, 1.5, n - n // 3).round(1)]


DECAYS = (step, low_rank, spiked, clustered, exponential, slow_exponential, polynomial, gapless, straddling)
GAPPED = ("step", "low_rank", "spiked")
CLEAR = ("step", "low_rank", "spiked", "clustered")
"""Whose values all stay clear of the floor. Those of an exponential do not: moved along its singular vectors, all that lie below
the floor come out one floor high, and could be anything up to two; moved at random they stay below it."""

MOVES: dict[str, Callable] = {
    "up": lambda rng, n: np.ones(n),
    "down": lambda rng, n: -np.ones(n),
    "either way": lambda rng, n: rng.choice([-1.0, 1.0], n),
    "random": lambda rng, n: None,
}
"""Signs of a perturbation along the singular vectors, which moves every value by all of its norm; or a Gaussian one."""


@dataclass(frozen=True)
class Case:
    """sigma, true; `spectrum` of the moved matrix; `taus` to ask for ranks at; `gap` in floors, where there is one"""

    decay: str
    move: str
    sigma: np.ndarray
    spectrum: Spectrum
    taus: tuple[float, ...]
    gap: float | None

    @property
    def clear(self) -> bool:
        """Whether no true value but zero lies below 10 floors."""
        return self.decay in CLEAR and self.sigma[self.sigma > 0].min() >= 10 * self.spectrum.floor.total

    def true_rank(self, tau: float) -> int:
        return int(np.sum(self.sigma > tau))


def cases(seeds: int = SEEDS, dtype: str = "float64") -> Iterator[Case]:
    """Every decay with every perturbation, `seeds` times."""
    for seed in range(seeds):
        for decay in DECAYS:
            for move in MOVES:
                yield make(decay, move, seed, dtype)


def make(decay: Callable, move: str, seed: int, dtype: str = "float64") -> Case:
    rng = np.random.default_rng([seed, DECAYS.index(decay), list(MOVES).index(move)])
    n, more = int(rng.integers(12, 49)), int(rng.integers(0, 9))
    size = float(10 ** rng.uniform(*NOISE[dtype]))
    sigma = np.sort(np.abs(decay(rng, n, size)))[::-1]
    U = np.linalg.qr(rng.standard_normal((n + more, n)))[0]
    V = np.linalg.qr(rng.standard_normal((n, n)))[0]
    signs = MOVES[move](rng, n)
    if signs is None:
        E = rng.standard_normal((n + more, n))
        A = (U * sigma) @ V.T + E * (size / np.linalg.norm(E, 2))
    else:
        A = (U * (sigma + size * signs)) @ V.T
    rounded = A.astype(dtype)
    lost = float(np.linalg.norm(rounded - A, 2)) * (1 + 1e-9)
    spectrum = judged(rounded, size * (1 + 1e-9) + CONSTRUCTION * sigma[0] + lost)
    floor = spectrum.floor.total
    taus, gap = [2 * floor, 0.1 * sigma[0], 0.5 * sigma[0] * 1.0001], None
    for near in sigma[rng.integers(0, n, 3)]:
        taus += [float(np.nextafter(near, 0)), float(near), float(np.nextafter(near, np.inf))]
    if decay.__name__ in GAPPED:
        at = (
            int(np.argmax(sigma[:-1] - sigma[1:]))
            if decay is not spiked
            else int(np.argmax(sigma[:-1] / np.maximum(sigma[1:], 1e-300)))
        )
        gap = float(sigma[at] - sigma[at + 1]) / floor
        taus.append((sigma[at] + sigma[at + 1]) / 2)
    return Case(decay.__name__, move, sigma, spectrum, tuple(taus), gap)


def judged(A: np.ndarray, error: float) -> Spectrum:
    """The verdict on a matrix whose entries are known to within ‖E‖₂ ≤ error."""
    blocks = torch.from_numpy(A[None])
    source = Written(tp.Dense(), A.shape, *A.shape, [Panel((0,), (0,), blocks)])
    part = Part("planted", error, "of known norm", "certain")
    evidence = Evidence(float(np.sum(A.astype(np.float64) ** 2)), part, (Bound(min(A.shape), "size"),), 0, None, "made")
    return verdict(source, evidence, "A", 1)


# ---- what must hold of every case: each returns the cases that break it

Ranker = Callable[[Spectrum, float], Rank]


def rank_at(s: Spectrum, tau: float) -> Rank:
    return s.rank_at(tau)


def uncovered(all_cases: list[Case], ranker: Ranker = rank_at) -> list[tuple[Case, float]]:
    """Thresholds at which the true rank lies outside of the interval."""
    found = []
    for case in all_cases:
        for tau in case.taus:
            rank = ranker(case.spectrum, tau)
            if not rank.lo <= case.true_rank(tau) <= rank.hi:
                found.append((case, tau))
    return found


def uncertified(all_cases: list[Case], ranker: Ranker = rank_at) -> list[Case]:
    """Gaps of 10 floors or more with a threshold in their middle, and the rank is not certified."""
    return [
        case
        for case in all_cases
        if case.gap is not None and case.gap >= 10 and ranker(case.spectrum, case.taus[-1]).flag != "certified"
    ]


def ambiguous(all_cases: list[Case], ranker: Ranker = rank_at) -> list[Case]:
    """Spectra clear of the floor, or steep and moved at random, whose rank at the default threshold is ambiguous."""
    return [
        case
        for case in all_cases
        if (case.clear or (case.decay == "exponential" and case.move == "random"))
        and ranker(case.spectrum, case.taus[0]).flag == "ambiguous"
    ]


def mislabelled(all_cases: list[Case], labels: Callable[[Spectrum], np.ndarray] = lambda s: s.labels) -> list[Case]:
    """A value called signal is truly above two floors, one called noise is not."""
    found = []
    for case in all_cases:
        named, limit = labels(case.spectrum), 2 * case.spectrum.floor.total
        if np.any((named == "signal") & (case.sigma <= limit)) or np.any((named == "noise") & (case.sigma > limit)):
            found.append(case)
    return found
