"""What is learnt about a Jacobian while it is written out, beside its entries."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tightpass.arrays import is_torch, on_host, squared_norm
from tightpass.confidence import ROUNDINGS
from tightpass.errors import InputError, VerificationError
from tightpass.evidence.arithmetic import Panels, estimated, measured
from tightpass.evidence.arithmetic import work_of as work_of_measuring
from tightpass.evidence.bounds import input_null, structural_bounds
from tightpass.evidence.explain import by_distance, of_attention
from tightpass.evidence.explain import work_of as work_of_heads
from tightpass.evidence.units import units
from tightpass.evidence.units import work_of as work_of_units
from tightpass.jacobians.forms.base import Cost
from tightpass.jacobians.operator import Jacobian
from tightpass.jacobians.probe import LEAK, WrittenProduct, explained, ratio
from tightpass.jacobians.twice.block import Twice, TwiceCost, twice
from tightpass.jacobians.twice.pair import of
from tightpass.kernels.products import block_product
from tightpass.models.shape import Shape
from tightpass.rank.records import Bound, Evidence, Explanation, Part
from tightpass.structure import BlockDiagonal, Dense, Panel
from tightpass.work import Work, kept, passing

APART = 100.0
"""How many times farther from the truth than products that do not form J the written blocks may be."""
KEPT_BYTES = 2**28
"""Panels that take up to as much stay in memory while the error of the arithmetic is measured."""


def check_range(energy: float, largest: float) -> None:
    """Raises InputError if ‖J‖_F² leaves float64's range, where sums of squares mean nothing."""
    if not np.isfinite(energy) or (largest > 0 and energy < 1e-290):
        raise InputError(
            f"‖J‖_F² is {energy:.1e}: not finite, or out of float64's range; rescale the function, or the model's weights"
        )


def work_of(
    cost: Cost, exact: TwiceCost, kind: str, tokens: int, shape: Shape, itemsize: int, stored: int, reading: Work
) -> Work:
    """Of `collect`, where all blocks take `stored` bytes: a panel is there while the next is written, and is looked at in
    float64. They stay for the measurement where they take little, and are read again where not."""
    fits, panel = stored <= KEPT_BYTES, cost.panel * itemsize
    before = 0 if fits else panel  # else among those that stay
    written = passing(before + panel + cost.writing * itemsize, cost.blocks)
    looked_at = passing(before + cost.panel * 8)
    again = 0 if fits else reading.peak
    if itemsize == 4:  # and in float64
        again += 2 * panel if fits else reading.peak
    return (
        kept(stored if fits else 0)
        .then(written, looked_at, work_of_heads(cost, kind, tokens, shape, itemsize), exact.made)
        .then(
            work_of_units(shape, kind, tokens, itemsize),
            work_of_measuring(cost, exact, kind, tokens, shape, itemsize, again),
        )
        .dropped()
    )


def collect(J: Jacobian, keep: Callable[[Panel], None], stored: Panels) -> Evidence:
    """Writes J out, handing each panel to `keep`, and measures beside it.

    stored   what was kept, panel by panel, as often as it is asked for: the error of the arithmetic is that of the entries
             as they are stored, and its measurement reads them about twenty times
    """
    tally, again = _Tally(J), _Again(J, stored)
    for panel in J.panels():
        keep(panel)
        again.add(panel)
        tally.add(panel)
    energy, explanation = tally.energy(), tally.explained()
    exact = None if J.block is None or J.rejected else twice(J.block)
    agreement = tally.agreement(exact)
    if J.block is None:
        size = Bound(min(J.shape), f"{J.shape[0]} × {J.shape[1]} matrix")
        part = tally.with_leak(estimated(J, again.panels))
        return Evidence(energy, part, (size,), 0, None, J.route, False, agreement, explanation)
    found = units(J.block)
    return Evidence(
        energy=energy,
        arithmetic=estimated(J, again.panels) if exact is None else measured(J, again.panels, exact),
        bounds=structural_bounds(J.block, found),
        kinks=found.kinks,
        active=found.active,
        route=J.route,
        agreement=agreement,
        explanation=explanation,
        saturated=0 if exact is None else exact.saturated,
        undecided=found.undecided,
    )


class _Again:
    """The panels once more: from memory where they take little of it, else from where they are stored."""

    def __init__(self, J: Jacobian, stored: Panels) -> None:
        entries = J.structure.count(J.tokens_out, J.tokens_in) * J.d_out * J.d_in
        self.fits, self.stored = entries * J.x.itemsize <= KEPT_BYTES, stored
        self.kept: list[Panel] = []

    def add(self, panel: Panel) -> None:
        if self.fits:
            self.kept.append(panel)

    def panels(self) -> Iterator[Panel]:
        return iter(self.kept) if self.fits else map(_as_tensor, self.stored())


def _as_tensor(panel: Panel) -> Panel:
    """As the model's own arithmetic has it, where it was read from a file."""
    return panel if is_torch(panel.blocks) else replace(panel, blocks=torch.from_numpy(panel.blocks))


class _Tally:
    """Sums over the blocks of J as they pass."""

    def __init__(self, J: Jacobian) -> None:
        self.J = J
        self.energies = np.zeros((J.tokens_out, J.tokens_in))
        self.largest = 0.0
        self.product = WrittenProduct(J.tokens_in, J.x, J.tokens_out, J.d_out)
        self.removed = np.zeros(J.tokens_in) if J.block is not None and input_null(J.block) else None

    def add(self, panel: Panel) -> Any:
        """Returns the blocks as a NumPy array (k, d_out, d_in)."""
        self.product.add(panel.rows, panel.columns, panel.blocks)
        blocks = on_host(panel.blocks)
        self.largest = max(self.largest, float(np.abs(blocks).max()))
        for t, s, block in zip(panel.rows, panel.columns, blocks, strict=True):
            self.energies[t, s] = squared_norm(block[None])
        if self.removed is not None:
            np.add.at(self.removed, list(panel.columns), _gain_along_ones(blocks))
        return blocks

    def energy(self) -> float:
        """‖J‖_F². Raises InputError if it is out of range."""
        energy = float(self.energies.sum())
        check_range(energy, self.largest)
        return energy

    def with_leak(self, part: Part) -> Part:
        """What a function's claimed structure leaves out may be as large as its probe lets pass."""
        if isinstance(self.J.structure, Dense):
            return part
        largest = math.sqrt(float(self.energies.sum(1).max()))
        leak = LEAK * float(torch.finfo(self.J.dtype).eps) * math.sqrt(self.J.tokens_out) * largest
        return replace(
            part, bound=part.bound + leak, method=f"{part.method}; and what the probe of the structure lets pass"
        )

    def agreement(self, exact: Twice | None) -> float:
        """Raises VerificationError if the blocks' product with a random vector is not J's: in twice float64's precision, where
        rounding may be large, as the floor will say; else by automatic differentiation."""
        J, v = self.J, self.product.v
        if J.block is None:  # no kernel of ours has a part in it
            expected, allowed = J.matvec(v.reshape(-1)).reshape(self.product.sum.shape), 0.0
        elif exact is not None:
            expected = exact.push(of(v[None])).rounded()[0]
            own = J.matvec(v.reshape(-1)).reshape(expected.shape).double()
            allowed = APART * ratio(float((own - expected).norm()), float(expected.norm()))
        else:  # ReLU units held: one within rounding of zero may differ between routes
            pushed = torch.func.jvp(J.block.in_precision(J.dtype).function(), (J.x,), (v,))[1]
            expected, allowed = pushed.reshape(self.product.sum.shape).detach(), 0.0
        error, allowed = self.product.error(expected), explained(J.dtype) + allowed
        if error <= allowed:
            return error
        allowed += ROUNDINGS * ratio(J.matmat_rounding(v.reshape(-1, 1)), float(expected.double().norm()))
        if error <= allowed:  # what cancels inside rounds by more than what comes out
            return error
        raise VerificationError(_contradiction(J, error, allowed))

    def explained(self) -> Explanation:
        mixes = not isinstance(self.J.structure, BlockDiagonal)
        heads, paths = of_attention(self.J, float(self.energies.sum()))
        return Explanation(
            null=None if self.removed is None else float(np.sqrt(self.removed.max())),
            heads=heads,
            paths=paths,
            distances=by_distance(self.energies) if mixes else None,
        )


def _contradiction(J: Jacobian, error: float, allowed: float) -> str:
    """What to say where written blocks and products differ by more than rounding explains."""
    if J.block is None:
        return f"the function's Jacobian contradicts itself: {J.diagnosis()}"
    differ = (
        f"{J.name}: the written blocks times a random vector differ from J·v by {error:.1e} "
        f"(rounding explains {allowed:.0e})"
    )
    if not J.form.closed:
        return f"{differ}; reverse and forward mode contradict each other: an operation of the model has a wrong derivative"
    return (
        f"{differ}; the kernels are wrong on this machine: set TIGHTPASS_KERNELS=reference, and report what "
        "`tightpass doctor` prints"
    )


def _gain_along_ones(blocks: Any) -> Any:
    """‖block·(1, .., 1)/√d‖² of each of (k, m, d) blocks, summed in more precision than they have."""
    count, m, d = blocks.shape
    high, low = np.zeros((count, m)), np.zeros((count, m))
    wide = np.ascontiguousarray(blocks, dtype=np.float64)
    block_product(wide, range(count), [0] * count, np.ones((1, d)), high, low)
    return np.sum((high + low) ** 2, axis=1) / d
