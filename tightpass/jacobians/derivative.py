"""Is a block's derivative right, and computed in the precision that it claims?

Finite differences are asked first: they are cheap, and know no formulas. They see nothing where softmax saturates, where
large inputs or biases cancel or where units bend within the smallest step. Where they do not confirm the derivative, the
formulas in twice float64's precision decide, which take no steps: what differs from them by more than the measured effect of
rounding is wrong.
"""

from __future__ import annotations

import math

import torch

from tightpass.confidence import ROUNDINGS
from tightpass.errors import VerificationError
from tightpass.jacobians.perturbing import rounding
from tightpass.jacobians.twice.block import Twice, twice
from tightpass.jacobians.twice.pair import of
from tightpass.models.blocks import Block, check_by_differences
from tightpass.models.differences import direction

STEADY = 10.0
"""A derivative that float32 and float64 agree on so much better than with the formulas is not rounded, but wrong."""


def check_derivative(block: Block) -> None:
    """Raises VerificationError for a derivative that is wrong, or not computed in the block's precision throughout."""
    try:
        check_by_differences(block)
    except VerificationError:
        # the value itself of a float32 block may be too far off to tell whether the formulas are its own
        exact = twice(block) or twice(block.in_precision(torch.float64))
        if exact is None:
            raise
        check_by_formulas(block, exact)


def check_by_formulas(block: Block, exact: Twice) -> None:
    """J·v by automatic differentiation against twice float64's precision: in the block's own, and in float64, where rounding
    hides less of a mistake."""
    v = direction(block.x)
    true = exact.push(of(v[None])).rounded()[0]
    size = float(true.norm())
    pushed = {dtype: _Pushed(block, v, dtype) for dtype in (torch.float32, torch.float64)}
    for dtype in {block.x.dtype, torch.float64}:
        gap = float((pushed[dtype].value - true).norm())
        allowed = ROUNDINGS * (pushed[dtype].rounding() + torch.finfo(dtype).eps * size)
        if not (math.isfinite(gap) and gap <= allowed):
            raise _wrong(block, gap, allowed, size)
    wide, narrow = pushed[torch.float64].value, pushed[torch.float32].value
    gap, apart, own = (float(at.norm()) for at in (wide - true, wide - narrow, wide))
    if 0 < STEADY * apart + 1e-6 * own < min(gap, own):  # large rounding hides nothing that no rounding moves
        raise _wrong(block, gap, STEADY * apart, size)


class _Pushed:
    """J·v by automatic differentiation in one precision, ReLU units held."""

    def __init__(self, block: Block, v: torch.Tensor, dtype: torch.dtype) -> None:
        self.held, self.v = block.in_precision(dtype), v.to(dtype)
        self.value = self._push().double()

    def _push(self) -> torch.Tensor:
        pushed: torch.Tensor = torch.func.jvp(self.held.function(), (self.held.x,), (self.v,))[1]
        return pushed.detach()

    def rounding(self) -> float:
        return rounding(self._push, self.v.dtype)


def _wrong(block: Block, gap: float, allowed: float, size: float) -> VerificationError:
    name, scale = str(block.x.dtype).removeprefix("torch."), size if size > 0 else 1.0
    remedy = "" if block.x.dtype == torch.float64 else "; load the model in float64"
    if not math.isfinite(gap):
        return VerificationError(f"the derivative of {block.name} is not finite: {name}'s range ends inside{remedy}")
    return VerificationError(
        f"the derivative of {block.name} differs from its formulas by {gap / scale:.1e}, rounding explains "
        f"{allowed / scale:.0e}: it is wrong, not computed in {name} throughout, or leaves {name}'s range inside{remedy}"
    )
