"""What is learnt about a Jacobian while it is written out, beside its entries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from tightpass.errors import InputError
from tightpass.jacobian.operator import Jacobian, Panel
from tightpass.jacobian.probe import WrittenProduct
from tightpass.rank.bounds import Bound, structural_bounds, units
from tightpass.rank.floor import BlockDifferences, Part, arithmetic, assumed_arithmetic
from tightpass.spectra.verify import squared_norm

OTHER = {torch.float64: torch.float32, torch.float32: torch.float64}


@dataclass(frozen=True)
class Evidence:
    """energy      ‖J‖_F²
    arithmetic  the floor's part of the model's arithmetic
    bounds      structural upper bounds on the rank, tightest first
    kinks       undecided ReLU units
    active      active units of each token, where there is one ReLU MLP
    route       how the Jacobian was computed
    estimated   whether `energy` is an estimate from random products
    """

    energy: float
    arithmetic: Part
    bounds: tuple[Bound, ...]
    kinks: int
    active: tuple[int, ...] | None
    route: str
    estimated: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Evidence:
        active = values["active"]
        return cls(
            energy=values["energy"],
            arithmetic=Part(**values["arithmetic"]),
            bounds=tuple(Bound(**bound) for bound in values["bounds"]),
            kinks=values["kinks"],
            active=None if active is None else tuple(active),
            route=values.get("route", "automatic differentiation"),
            estimated=values.get("estimated", False),
        )


def check_range(energy: float, largest: float) -> None:
    """Raises InputError if ‖J‖_F² leaves float64's range, where sums of squares mean nothing."""
    if not np.isfinite(energy) or (largest > 0 and energy < 1e-290):
        raise InputError(f"‖J‖_F² is {energy:.1e}: not finite, or out of float64's range; rescale the function")


def collect(J: Jacobian, keep: Callable[[Panel], None]) -> Evidence:
    """Writes J out, handing each panel to `keep`, and measures beside it.

    The error of the arithmetic is measured against the same blocks in the other precision, at
    the same x and activation pattern, a panel at a time.
    """
    dtype = str(J.dtype).removeprefix("torch.")
    size = Bound(min(J.shape), f"{J.shape[0]} × {J.shape[1]} matrix")
    if J.block is None:
        energy = largest = 0.0
        for panel in J.panels():
            keep(panel)
            energy += squared_norm(panel.blocks.cpu().numpy())
            largest = max(largest, float(panel.blocks.abs().max()))
        check_range(energy, largest)
        return Evidence(energy, assumed_arithmetic(energy, dtype), (size,), 0, None, J.route)
    other = J.block.in_precision(OTHER[J.dtype])
    shadow = Jacobian(other.function(), other.x, other.structure, block=other, memory=J.memory)
    differences = BlockDifferences(J.tokens_out, J.tokens_in)
    energy = largest = 0.0
    product = WrittenProduct(J.tokens_in, J.x, J.tokens_out, J.d_out)
    for panel, twin in zip(J.panels(), shadow.panels(), strict=True):
        keep(panel)
        product.add(panel.rows, panel.columns, panel.blocks)
        blocks = panel.blocks.cpu().numpy()
        energy += squared_norm(blocks)
        largest = max(largest, float(np.abs(blocks).max()))
        differences.add(panel.rows, panel.columns, blocks, twin.blocks.cpu().numpy())
    check_range(energy, largest)
    product.check((J @ product.v.reshape(-1, 1)).reshape(product.sum.shape), J.name)
    found = units(J.block, other)
    return Evidence(
        energy, arithmetic(differences, dtype), structural_bounds(J.block, found), found.kinks, found.active, J.route
    )
