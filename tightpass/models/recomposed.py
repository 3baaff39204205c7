"""The proof of a family's row: a layer put together from its branches is the layer."""

from __future__ import annotations

import torch

from tightpass.errors import VerificationError
from tightpass.models.branches import Function, recomposed
from tightpass.models.capture import Captured, first
from tightpass.models.genuine import genuine
from tightpass.models.parts import LayerParts

ALLOWED = {torch.float64: 1e-12, torch.float32: 1e3 * torch.finfo(torch.float32).eps}
"""Difference relative to the layer's output that rounding may leave."""
DRAWS, SAFETY = 3, 100.0
"""Perturbed inputs that show how far rounding may carry, and how much more than they show is allowed."""


def check_recomposed(captured: Captured, index: int, parts: LayerParts) -> None:
    """Raises VerificationError if x + attention and then + MLP, or both at x, is not what the layer gave.

    This finds what the row forgets: a norm behind a branch, a multiplier, a residual inside of a module, branches that stand
    side by side.
    """
    call = captured.call(index, "layer")
    x, y = (at.reshape(-1, at.shape[-1]) for at in (call.x, call.y))

    def layer(x: torch.Tensor) -> torch.Tensor:
        return first(parts.layer(x[None], *call.args, **call.kwargs))[0]

    with torch.no_grad():
        again = genuine(recomposed(parts, captured.call(index, parts.mixing)))(x)
        apart, allowed = float((again - y).abs().max()), ALLOWED[y.dtype] * float(y.abs().max())
        if apart <= allowed or apart <= SAFETY * _carried(genuine(layer), x, y):
            return
    raise VerificationError(
        f"layer {index} of {captured.model.name} is not the sum of its branches: x + attention + MLP differs from its output "
        f"by {apart:.1e}, at most {allowed:.1e} is rounding.\nThe row of {captured.model.config.model_type} lacks a norm, a "
        "multiplier or an order of this model"
    )


def _carried(layer: Function, x: torch.Tensor, y: torch.Tensor) -> float:
    """How far the rounding of x alone moves the layer's output: large where its terms cancel."""
    generator = torch.Generator().manual_seed(0)
    moved = []
    for _ in range(DRAWS):
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        moved.append(float((layer(x * (1 + torch.finfo(x.dtype).eps * noise)) - y).abs().max()))
    return max(moved)
