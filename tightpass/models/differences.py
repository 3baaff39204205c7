"""Finite differences: how much a function's value is rounded at x, and whether its derivative is what it says."""

from __future__ import annotations

from collections.abc import Callable

import torch

Function = Callable[[torch.Tensor], torch.Tensor]

ORDER = 4
STEPS = {torch.float64: (1e-2, 1e-3, 1e-4, 1e-5), torch.float32: (1e-1, 3e-2, 1e-2, 3e-3)}
ALLOWED = {torch.float64: 1e-5, torch.float32: 1e-2}
"""Relative error of a slope by differences that curvature may leave."""
LOST = 1e5
"""Rounding units of noise, beyond what the size of x explains, from which on a lower precision is at work: float32
inside of float64 leaves 5e8 of them."""


def direction(x: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A random v (tokens, d), as long, token by token, as x is without its mean: what a norm in front looks at. A token
    that is constant has a thousandth of its own length."""
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    size = x.norm(dim=-1, keepdim=True)
    size = torch.where(size > 0, size, torch.ones_like(size))
    centred = (x - x.mean(-1, keepdim=True)).norm(dim=-1, keepdim=True)
    varies = centred > 1e3 * torch.finfo(x.dtype).eps * size
    length: torch.Tensor = torch.where(varies, centred, 1e-3 * size) / v.norm(dim=-1, keepdim=True)
    return v * length


def noise(f: Function, x: torch.Tensor, v: torch.Tensor) -> float:
    """The rounding in f near x, as a norm, by fourth differences along v (Moré & Wild 2011): what is smooth in f vanishes
    in them, and rounding grows by √70."""
    h = torch.finfo(x.dtype).eps ** 0.375
    with torch.no_grad():
        values = torch.stack([f(x + k * h * v) for k in range(ORDER + 3)])
    table = values.diff(n=ORDER, dim=0)
    return float(table.double().norm() / len(table) ** 0.5 / 70**0.5)


def explained_noise(f: Function, x: torch.Tensor) -> float:
    """The rounding that working precision explains: of f's value, and of x itself carried through f."""
    generator = torch.Generator().manual_seed(1)
    rounded = x * torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    y, moved, *_ = torch.func.jvp(f, (x,), (rounded,))
    return torch.finfo(x.dtype).eps * float(y.detach().double().norm() + moved.detach().double().norm())


def loses_precision(f: Function, x: torch.Tensor) -> bool:
    """Whether f computes in a lower precision than x's somewhere inside."""
    return noise(f, x, direction(x)) > LOST * explained_noise(f, x)


def slope_error(f: Function, x: torch.Tensor, v: torch.Tensor, slope: torch.Tensor) -> tuple[float, float]:
    """‖differences − slope‖/‖slope‖ along v, and what curvature and rounding explain of it.

    Central differences with one step of Richardson's extrapolation, of several lengths; each output token takes the
    length that suits it, since tokens differ in curvature. A wrong slope is wrong at all of them.
    """
    errors = []
    with torch.no_grad():
        for h in STEPS[x.dtype]:
            whole, half = ((f(x + s * v) - f(x - s * v)) / (2 * s) for s in (h, h / 2))
            errors.append((((4 * half - whole) / 3) - slope).double().norm(dim=-1))
    each = torch.stack(errors)
    each = torch.where(each.isfinite(), each, torch.inf)
    size = float(slope.double().norm())
    rounding = 10 * noise(f, x, v) / STEPS[x.dtype][0]
    error = float(each.amin(0).norm())
    scale = size if size > 0 else 1.0
    return error / scale, ALLOWED[x.dtype] + rounding / scale
