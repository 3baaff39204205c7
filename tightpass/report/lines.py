"""Where a block's numbers come from, in lines of text."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from tightpass.rank.records import HeadShares, PathShares
from tightpass.rank.spectrum import Spectrum


def lines(s: Spectrum) -> Iterator[str]:
    """A heading, then what the rank, the floor, the largest value and ‖J‖_F² are made of."""
    why = s.evidence.explanation
    yield f"{s.name}: rank {s.rank} of {s.size}, {s.rank.words}"
    for bound in s.evidence.bounds:
        yield f"  at most {bound.rank}: {bound.reason}"
    for part in s.floor.parts:
        yield f"  floor: {part.bound:.1e} {part.name} ({part.confidence}; {part.method})"
    yield f"  floor: {s.floor.total:.1e} in all ({s.floor.confidence}); max(m, n)·eps·σ₁ would be {s.floor.conventional:.1e}"
    counts = np.bincount(s.codes, minlength=3)
    unknown = f", {s.size - len(s.values)} not known" if s.partial else ""
    yield f"  labels: {counts[2]} signal, {counts[1]} doubtful, {counts[0]} noise{unknown}"
    if s.evidence.active is not None:
        active = np.array(s.evidence.active)
        yield f"  active units a token: {active.min()} to {active.max()}, median {np.median(active):.0f}"
    if why.null is not None:
        yield f"  norm: removes one direction a token; along these J came out as {why.null:.0e}"
    if s.blocks is not None:
        own = s.by_token()
        ranks, top = own["rank_high"], int(np.argmax(own["sigma_1"].to_numpy()))
        yield (
            f"  tokens: rank {ranks.mean():.1f} ± {ranks.std(ddof=0):.1f} ({ranks.min()} to {ranks.max()}), "
            f"σ₁ {own['sigma_1'].median():.3g} in the median and {own['sigma_1'].max():.3g} at token {top}"
        )
    if why.heads is not None:
        yield from _heads(why.heads, float(s.values[0]))
    if why.paths is not None:
        yield from _paths(why.paths)
    if why.distances is not None:
        yield "  ‖J‖_F² by distance t − s: " + ", ".join(
            f"{name}: {share:.1%}" for name, share in binned(why.distances)
        )


def _heads(heads: HeadShares, sigma1: float) -> Iterator[str]:
    share = np.array(heads.gain) / sigma1
    order = np.argsort(-np.abs(share), kind="stable")[:12]
    left = f"; {len(share) - len(order)} more" if len(order) < len(share) else ""
    yield "  heads, share of σ₁: " + ", ".join(f"H{h:02d} {share[h]:.1%}" for h in order) + left
    if heads.energy is not None:
        energy = np.array(heads.energy)
        order = np.argsort(-energy, kind="stable")[:12]
        yield (
            "  heads, ‖J_h‖_F²/‖J‖_F²: "
            + ", ".join(f"H{h:02d} {energy[h]:.1%}" for h in order)
            + f"{left}; {energy.sum():.1%} in all, the rest is how heads add up or cancel"
        )


def _paths(paths: PathShares) -> Iterator[str]:
    values, pattern = paths.energy
    most = "" if paths.directions is None else " (at most {} and {} directions)".format(*paths.directions)
    yield (
        f"  paths, of ‖J‖_F²: {values:.1%} through the values at weights that are held, {pattern:.1%} through the weights{most}; "
        "the rest is how both add up or cancel"
    )
    if paths.heads is not None:
        both = zip(*paths.heads, strict=True)
        yield "  heads, values and weights: " + ", ".join(f"H{h:02d} {v:.1%} {p:.1%}" for h, (v, p) in enumerate(both))


def binned(distances: tuple[tuple[int, float], ...]) -> list[tuple[str, float]]:
    """Shares of distances in groups 0, 1, 2–3, 4–7, ..; negative ones are later tokens."""
    groups: dict[int, float] = {}
    for distance, share in distances:
        k = 0 if distance == 0 else int(math.copysign(math.frexp(abs(distance))[1], distance))
        groups[k] = groups.get(k, 0.0) + share
    out = []
    for k, share in sorted(groups.items()):
        first = 0 if k == 0 else 2 ** (abs(k) - 1)
        last = max(first, 2 ** abs(k) - 1)
        name = f"{first}" if first == last else f"{first}–{last}"
        out.append((f"−({name})" if k < 0 else name, share))
    return out
