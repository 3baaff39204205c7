"""What norms of transformers compute, told from what they give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tightpass.models.genuine import genuine

ROWS = 3
"""Random inputs of each size that tell one norm from another."""
SAME = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Difference, relative to a row's largest entry, up to which a norm is what is said of it: norms differ by a whole weight, or,
where inputs are small, by what is added to the variance."""
EPSILON = 1e-5
"""Of norms that keep theirs to themselves."""


@dataclass(frozen=True)
class NormKind:
    """(offset + weight)∘x̂ + bias with x̂ = r·(x − mean) where `centred`, else r·x, and r = 1/√(var + eps)."""

    centred: bool
    eps: float
    weight: torch.Tensor | None
    offset: float = 0.0
    bias: torch.Tensor | None = None

    @property
    def gamma(self) -> torch.Tensor | None:
        """What x̂ is multiplied by; None for 1."""
        return self.weight if self.weight is None or self.offset == 0 else self.weight + self.offset

    def at(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x̂ (.., d) and r (..)."""
        centred = x - x.mean(-1, keepdim=True) if self.centred else x
        r = (centred.square().mean(-1) + self.eps).rsqrt()
        return centred * r[..., None], r

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        xhat, gamma = self.at(x)[0], self.gamma
        y = xhat if gamma is None else xhat * gamma
        return y if self.bias is None else y + self.bias


def kind_of(module: nn.Module, width: int, like: torch.Tensor) -> NormKind | None:
    """What a norm over `width` features computes, at inputs like a tensor's precision and device; None for what is none of these.

    A weight of two axes is of heads: (heads, width).
    """
    weight, bias = (_numbers(module, name) for name in ("weight", "bias"))
    if isinstance(module, nn.LayerNorm) and type(module).forward is nn.LayerNorm.forward:
        return NormKind(True, module.eps, weight, 0.0, bias)
    shape = (width,) if weight is None else tuple(weight.shape)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2 * ROWS, *shape, generator=generator, dtype=torch.float64)
    small = max(rms_epsilon(module, like.dtype), 1e-12) ** 0.5
    x = torch.cat([3 * drawn[:ROWS] + 1, small * drawn[ROWS:]]).to(like)
    with torch.no_grad():
        y = genuine(module)(x)
        return next((kind for kind in _kinds(module, weight, bias, x.dtype) if _same(kind(x), y)), None)


def multiplier_of(module: nn.Module, like: torch.Tensor) -> torch.Tensor | None:
    """λ (d,) of a module that multiplies its input x (.., d) by it, as layer scales do; None for what does something else."""
    parameters = list(module.parameters())
    if len(parameters) != 1 or parameters[0].ndim != 1:
        return None
    scale = parameters[0].detach()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, len(scale), generator=generator, dtype=torch.float64).to(like)
    with torch.no_grad():
        return scale if torch.equal(module(x), x * scale) else None


def _kinds(
    module: nn.Module, weight: torch.Tensor | None, bias: torch.Tensor | None, dtype: torch.dtype
) -> Iterator[NormKind]:
    for centred in (False, True):
        for offset in (0.0, 1.0):
            yield NormKind(centred, rms_epsilon(module, dtype), weight, offset, bias)


def _numbers(module: nn.Module, name: str) -> torch.Tensor | None:
    value: Any = getattr(module, name, None)
    return value.detach() if isinstance(value, torch.Tensor) else None


def _same(mine: torch.Tensor, theirs: torch.Tensor) -> bool:
    if mine.shape != theirs.shape:
        return False
    gap, size = ((part.flatten(1).abs().amax(1)) for part in (mine - theirs, theirs))
    return bool((gap <= SAME.get(mine.dtype, SAME[torch.float32]) * size).all())


def rms_epsilon(norm: nn.Module, dtype: torch.dtype) -> float:
    """What a norm adds to the variance, at an x of some precision: torch's own RMSNorm takes that precision's unit if none is
    given."""
    if isinstance(norm, nn.RMSNorm) and norm.eps is None:
        return torch.finfo(dtype).eps
    given: Any = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    return EPSILON if given is None else float(given)
