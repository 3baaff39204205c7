"""What must hold of a case: every value within the floor, every rank inside its interval, every label true, no raw traceback."""

from __future__ import annotations

import math
import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf

import tightpass as tp
from oracles import fuzz_cases
from oracles import fuzz_oracle as oracle
from oracles.fuzz_cases import Case
from tightpass.evidence import arithmetic
from tightpass.models.blocks import Block

Ranker = Callable[[Any, float], Any]
TINY = mpf(10) ** -280
"""Where float64 ends: what is smaller may come out as zero."""
THRESHOLDS = 6
TOPK = 3


@dataclass(frozen=True)
class Truth:
    """J of one activation pattern, and of each of its diagonal blocks where it is block-diagonal."""

    J: np.ndarray
    blocks: int = 0

    @cached_property
    def by_token(self) -> list[list[mpf]]:
        rows, columns = (n // self.blocks for n in self.J.shape)
        return [
            oracle.singular_values(self.J[t * rows : (t + 1) * rows, t * columns : (t + 1) * columns])
            for t in range(self.blocks)
        ]

    @cached_property
    def values(self) -> list[mpf]:
        if self.blocks:
            return sorted((v for own in self.by_token for v in own), reverse=True)
        return oracle.singular_values(self.J)

    @property
    def largest(self) -> mpf:
        return self.values[0] if self.values else mpf(0)

    @property
    def rank(self) -> int:
        """Values that are not zero, so far as 50 digits tell."""
        return above(self.values, oracle.ZERO * self.largest)


def above(values: Iterable[mpf], tau: float | mpf) -> int:
    return sum(v > mpf(tau) for v in values)


@dataclass
class Outcome:
    """What came of a case: faults in words; or the refusal; and how tight the floor is."""

    case: Case
    faults: list[str] = field(default_factory=list)
    refusal: str | None = None
    flag: str = ""
    confidence: str = ""
    rank: tuple[int, int] = (0, 0)
    kinks: int = 0
    flipped: int = 0
    saturated: int = 0
    ratio: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "case": fuzz_cases.fields(self.case)}


# ---- the two sides


@dataclass(frozen=True)
class Pair:
    """A spectrum and what it must agree with: J with the units that were active in the run, and with those that truly are."""

    spectrum: Any
    run: Truth
    true: Truth
    error: float
    flipped: int


def pair(c: Case) -> Pair:
    """Computes both. Raises whatever the package raises."""
    with mpmath.workdps(oracle.DIGITS):
        return _function_pair(c) if c.family == "function" else _block_pair(c)


def _spectrum(c: Case, J: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        if c.lanczos:
            patch.setattr(arithmetic, "WHOLE", 0)
        return tp.spectrum(J, method="topk", k=min(TOPK, *J.shape)) if c.method == "topk" else tp.spectrum(J)


def _function_pair(c: Case) -> Pair:
    given = fuzz_cases.function(c)
    J = tp.jacobian(given, given.x, structure=fuzz_cases.structure(c))
    y = given.apply(oracle.Exact, oracle.identity(oracle.exact(given.x)), *map(oracle.exact, given.weights))
    true = Truth(oracle.matrix(y), c.tokens if c.structure == "BlockDiagonal" else 0)
    return Pair(_spectrum(c, J), true, true, _error(J, true), 0)


def _block_pair(c: Case) -> Pair:
    model = fuzz_cases.model(c)
    loaded = tp.load_model(model, dtype=c.dtype)
    block = tp.block(loaded, c.kind, layer=c.layer, head=c.head, token_ids=fuzz_cases.token_ids(c), norm=c.norm,
                     residual=c.residual)  # fmt: skip
    J = tp.jacobian(block)
    spectrum = _spectrum(c, J)
    seen = oracle.layers_of(model)
    pieces = seen.layers if c.layer is None else seen.layers[c.layer : c.layer + 1]
    f = oracle.block_function(seen, c.kind, c.layer, c.head, c.norm, c.residual)
    x, blocks = oracle.exact(block.x), c.tokens if c.kind == "mlp" else 0
    true = Truth(oracle.matrix(f(oracle.identity(x))), blocks)
    if not block.has_relu_units:
        return Pair(spectrum, true, true, _error(J, true), 0)
    flipped = _hold(pieces, block)
    run = Truth(oracle.matrix(f(oracle.identity(x))), blocks) if flipped else true
    return Pair(spectrum, run, true, _error(J, run), flipped)


def _hold(pieces: Any, block: Block) -> int:
    """Holds the units at the signs that the run saw; returns how many of those are not the true ones, and matter."""
    flipped = 0
    for piece, call in zip(pieces, block.unit_calls(), strict=True):
        mlp, on = piece.mlp, (call.y > 0).reshape(block.tokens, -1).numpy()
        truly = np.array(mlp.seen > 0, dtype=bool)
        dead = ~(mlp.down.weight != 0).any(0).numpy() | ~(mlp.up.weight != 0).any(1).numpy()
        flipped += int(((on != truly) & ~dead).sum())
        mlp.active = on
    return flipped


def _error(J: Any, true: Truth) -> float:
    return float(np.linalg.norm(oracle.difference(J.dense().numpy(), true.J), 2))


# ---- what must hold


def as_printed(spectrum: Any, tau: float) -> Any:
    return spectrum.rank_at(tau)


def faults(c: Case, found: Pair, ranker: Ranker = as_printed) -> list[str]:
    """All that is wrong with a spectrum, in words."""
    with mpmath.workdps(oracle.SVD_DIGITS):
        s = found.spectrum
        return [
            *_values(s, found.run),
            *_labels(s, found.run),
            *_ranks(c, s, found, ranker),
            *_bound(s, found),
            *_tokens(s, found),
            *_kinks(s, found),
        ]


def _values(s: Any, truth: Truth) -> list[str]:
    moved = [abs(mpf(float(v)) - t) for v, t in zip(s.values, truth.values, strict=s.total is None)]
    worst, floor = max(moved, default=mpf(0)), mpf(s.floor.total)
    if worst <= floor + TINY:
        return []
    return [f"value: off by {float(worst):.2e}, the floor is {float(floor):.2e} ({_times(worst, floor)})"]


def known(tau: float, truth: Truth) -> bool:
    """Whether 50 digits, and float64's range, tell how many values exceed τ; of J = 0, always."""
    return truth.largest == 0 or bool(tau > max(oracle.ZERO * truth.largest, TINY))


def _times(worst: mpf, floor: mpf) -> str:
    return f"{float(worst / floor):.3g} times" if floor else "infinitely"


def _labels(s: Any, truth: Truth) -> list[str]:
    floor, out = mpf(s.floor.total), []
    for i, (label, true) in enumerate(zip(s.labels, truth.values, strict=False)):
        if label == "signal" and not true > 2 * floor:
            out.append(f"label: value {i} is {float(true):.2e}, called signal")
        if label == "noise" and not true <= 2 * floor + TINY:
            out.append(f"label: value {i} is {float(true):.2e}, called noise")
    return out[:1]


def thresholds(c: Case, s: Any, truth: Truth) -> list[float]:
    """Random ones between the floor and beyond σ₁, doubles on both sides of true values, and the nearest certain one."""
    rng = np.random.default_rng(c.seed)
    floor, top = float(s.floor.total), 2 * float(truth.largest)
    taus = []
    if 0 < floor < top < math.inf:
        taus += [float(t) for t in np.exp(rng.uniform(math.log(floor), math.log(top), THRESHOLDS))]
    there = [float(v) for v in truth.values[: len(s.values)] if known(v, truth)]
    for value in rng.permutation(there)[:THRESHOLDS]:
        taus += [float(np.nextafter(value, 0)), float(value), float(np.nextafter(value, math.inf))]
        taus += [float(value) + floor, max(float(value) - floor, 0.0)]
    return [t for t in taus if math.isfinite(t)]


def _ranks(c: Case, s: Any, found: Pair, ranker: Ranker) -> list[str]:
    default = 2 * s.floor.total
    taus = [default, *thresholds(c, s, found.run)]
    if s.rank.nearest is not None:
        nearest = ranker(s, s.rank.nearest)
        taus.append(s.rank.nearest)
        if nearest.lo != nearest.hi:
            return [f"nearest: τ = {s.rank.nearest!r} is said to be certain, and gives {nearest}"]
    for tau in taus:
        if not known(tau, found.run):
            continue
        rank = ranker(s, float(tau))
        for truth, which in ((found.run, "the run's units"), (found.true, "the true units")):
            true = above(truth.values, tau)
            if not rank.lo <= true <= rank.hi:
                return [f"rank: {rank.lo}..{rank.hi}, {rank.flag}, at τ = {float(tau)!r}; it is {true} with {which}"]
        if (rank.flag == "certified") != (rank.lo == rank.hi):
            return [f"flag: {rank.flag} of {rank.lo}..{rank.hi}"]
    return []


def _bound(s: Any, found: Pair) -> list[str]:
    bound, true = min(b.rank for b in s.evidence.bounds), max(found.run.rank, found.true.rank)
    return [] if true <= bound else [f"bound: {bound} by structure, the rank is {true}"]


def _tokens(s: Any, found: Pair) -> list[str]:
    """The ranks by token of a block-diagonal J."""
    if s.blocks is None or not found.run.blocks:
        return []
    for truth in (found.run, found.true):
        for t, row in s.by_token().iterrows():
            true = above(truth.by_token[t], s.rank.tau)
            if known(s.rank.tau, truth) and not row.rank_low <= true <= row.rank_high:
                return [f"token: {t} has rank {true}, said to be {row.rank_low}..{row.rank_high}"]
    return []


def _kinks(s: Any, found: Pair) -> list[str]:
    if s.evidence.kinks >= found.flipped:
        return []
    return [f"kinks: {s.evidence.kinks} undecided units, but {found.flipped} were on the wrong side"]


# ---- one case


def examine(c: Case, ranker: Ranker = as_printed, factor: float = 1.0) -> Outcome:
    """Runs a case and judges it; `factor` multiplies the floor (a planted fault)."""
    try:
        found = pair(c)
        if factor != 1:
            found = replace(found, spectrum=with_floor(found.spectrum, factor))
        wrong = faults(c, found, ranker)
    except tp.TightpassError as error:
        return Outcome(c, refusal=f"{type(error).__name__}: {reason(str(error))}")
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return Outcome(c, faults=[f"traceback: {type(error).__name__}: {error} ({place.name})"])
    s, run = found.spectrum, found.run
    unit = found.error + float(np.finfo(c.dtype).eps) * float(run.largest)
    return Outcome(
        c,
        faults=wrong,
        flag=s.rank.flag,
        confidence=s.floor.confidence,
        rank=(s.rank.lo, s.rank.hi),
        kinks=s.evidence.kinks,
        flipped=found.flipped,
        saturated=s.evidence.saturated,
        ratio=float(s.floor.total) / unit if unit > 0 and s.total is None else None,
    )


def with_floor(s: Any, factor: float) -> Any:
    parts = tuple(replace(part, bound=part.bound * factor) for part in s.floor.parts)
    return replace(s, floor=replace(s.floor, parts=parts))


def reason(message: str) -> str:
    """A refusal without its numbers and names, to count by."""
    line = message.splitlines()[0]
    line = re.sub(r"L\d+\.\w+|J\b|model\b", "…", line)
    return re.sub(r"-?\d+(\.\d+)?(e[-+]?\d+)?|nan|inf\b", "#", line)[:110]


def run_seed(seed: int) -> dict[str, Any]:
    """For a pool of processes."""
    torch.set_num_threads(1)
    return {"seed": seed, **examine(fuzz_cases.seeded(seed)).as_dict()}


def counted(outcomes: list[dict[str, Any]], *names: str) -> dict[str, int]:
    """How many outcomes have each combination of some fields, of their own or of their case."""

    def key(o: dict[str, Any]) -> str:
        return " / ".join(str(o["case"][n] if n in o["case"] else o.get(n)) for n in names)

    return dict(sorted(Counter(key(o) for o in outcomes).items()))
