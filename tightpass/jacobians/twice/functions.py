"""exp, and the activations of transformers with their slopes, in twice float64's precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, reduce
from typing import Any

import mpmath
import numpy as np
import torch
from torch import nn

from tightpass.jacobians.twice.pair import Pair, Tensor, of

DIGITS = 120
"""Of the constants, and of the recurrence for Taylor coefficients, which loses some."""
HALVINGS, TERMS, RANGE = 9, 11, 709.0
CHUNK = 8192
STEP, FARTHEST, ORDER = 0.25, 27.0, 28
PLAIN = 20
"""Terms of Taylor's series from which on they are so small that plain numbers do."""


CONSTANTS: dict[str, Callable[[], Any]] = {
    "log(2)": lambda: mpmath.log(2),
    "sqrt(2)/2": lambda: mpmath.sqrt(2) / 2,
    "sqrt(2*pi)": lambda: mpmath.sqrt(2 * mpmath.pi),
}


@lru_cache(maxsize=len(CONSTANTS))
def constant(name: str) -> tuple[float, float]:
    """A number as two float64 numbers."""
    with mpmath.workdps(DIGITS):
        return _two(CONSTANTS[name]())


def _two(value: Any) -> tuple[float, float]:
    high = float(value)
    return high, float(value - high)


def like(name: str, x: Tensor) -> Pair:
    high, low = constant(name)
    return Pair(x.new_tensor(high), x.new_tensor(low))


def exp(x: Pair) -> Pair:
    """e^x; 0 where it underflows, infinite where it overflows. x = n·log 2 + 2⁹·r, and e^r − 1 by its series, doubled in
    argument nine times."""
    inside = x.hi.abs() < RANGE
    beyond = torch.where(x.hi > 0, torch.inf, 0.0)
    found = _exp(x.where(inside, 0.0))
    return Pair(torch.where(inside, found.hi, beyond), torch.where(inside, found.lo, 0.0))


def _exp(x: Pair) -> Pair:
    n = (x.hi / math.log(2)).round()
    r = (x - like("log(2)", x.hi) * n).scaled(2.0**-HALVINGS)
    rest = torch.ones_like(r.hi)  # r ≤ 2⁻¹⁰: what follows the sixth term is below 2⁻⁶⁰, and plain numbers do
    for k in range(TERMS, 6, -1):
        rest = rest * r.hi / k + 1.0
    grown = of(rest)
    for k in range(6, 1, -1):
        grown = grown * r / float(k) + 1.0
    less_one = grown * r  # e^r − 1
    for _ in range(HALVINGS):
        less_one = less_one.scaled(2.0) + less_one * less_one
    whole = less_one + 1.0
    half = (n / 2).round()  # 2ⁿ itself may leave the range
    return whole.scaled(torch.ldexp(torch.ones_like(n), half.int())).scaled(
        torch.ldexp(torch.ones_like(n), (n - half).int())
    )


def logistic(x: Pair) -> Pair:
    """1/(1 + e^−x), from the side where nothing cancels."""
    size = x.map(lambda part: torch.where(x.hi > 0, -part, part))  # −|x|
    e = exp(size)
    below = e / (e + 1.0)
    return _either(x.hi > 0, (e * 0.0 + 1.0) / (e + 1.0), below)


def tanh(x: Pair) -> Pair:
    """2·logistic(2x) − 1, and Taylor's series where x is small."""
    far = logistic(x.scaled(2.0)).scaled(2.0) - 1.0
    square = x * x
    near = square * 0.0
    for coefficient in reversed(_tanh_coefficients()):
        near = near * square + Pair(x.hi.new_tensor(coefficient[0]), x.hi.new_tensor(coefficient[1]))
    return _either(x.hi.abs() > 0.125, far, near * x)


@lru_cache(maxsize=1)
def _tanh_coefficients() -> tuple[tuple[float, float], ...]:
    with mpmath.workdps(DIGITS):
        series = mpmath.taylor(mpmath.tanh, 0, 35)
        return tuple(_two(value) for value in series[1::2])


def normal_cdf(z: Pair) -> Pair:
    """Φ(z), to full relative precision in its lower tail: erfcx(|z|/√2)·e^(−z²/2)/2 there, and 1 less that above."""
    tail = _erfcx(z.map(lambda part: torch.where(z.hi < 0, -part, part)) * like("sqrt(2)/2", z.hi)) * normal_factor(z)
    tail = tail.scaled(0.5)
    return _either(z.hi < 0, tail, -tail + 1.0)


def normal_factor(z: Pair) -> Pair:
    """e^(−z²/2)."""
    return exp(-(z * z).scaled(0.5))


def _erfcx(x: Pair) -> Pair:
    """e^(x²)·erfc(x) for x ≥ 0, by Taylor's series about the nearest multiple of `STEP`."""
    at = (x.hi / STEP).round().clamp(0, FARTHEST / STEP)
    h = x - at * STEP
    table = torch.tensor(_erfcx_table(), dtype=torch.float64, device=x.hi.device)  # (2, ORDER, points)
    index = at.nan_to_num(0.0).long().flatten()  # what is not a number stays none by h

    def looked_up(part: int, n: int) -> Tensor:
        return table[part, n].index_select(0, index).view(at.shape)

    start = looked_up(0, ORDER - 1)
    for n in range(ORDER - 2, PLAIN - 1, -1):
        start = start * h.hi + looked_up(0, n)
    total = of(start)
    for n in range(PLAIN - 1, -1, -1):
        total = total * h + Pair(looked_up(0, n), looked_up(1, n))
    return total


@lru_cache(maxsize=1)
def _erfcx_table() -> list[Any]:
    """Coefficients by w' = 2xw − 2/√π, whose recurrence loses digits that mpmath has to spare."""
    points = []
    with mpmath.workdps(DIGITS):
        for i in range(int(FARTHEST / STEP) + 1):
            x = mpmath.mpf(i) * STEP
            w = [mpmath.exp(x * x) * mpmath.erfc(x)]
            w.append(2 * x * w[0] - 2 / mpmath.sqrt(mpmath.pi))
            for n in range(1, ORDER - 1):
                w.append((2 * x * w[n] + 2 * w[n - 1]) / (n + 1))
            points.append([_two(value) for value in w])
    return np.array(points).transpose(2, 1, 0).tolist()  # type: ignore[no-any-return]


def _either(condition: Tensor, a: Pair, b: Pair) -> Pair:
    return Pair(torch.where(condition, a.hi, b.hi), torch.where(condition, a.lo, b.lo))


# ---- activations: value and slope at z

Activation = Callable[[Pair], tuple[Pair, Pair]]


def in_parts(f: Activation) -> Activation:
    """The same, some entries at a time: intermediates that stay in the cache take a fraction of the time."""

    def applied(z: Pair) -> tuple[Pair, Pair]:
        parts = [f(Pair(*part)) for part in zip(z.hi.flatten().split(CHUNK), z.lo.flatten().split(CHUNK), strict=True)]
        value, slope = (reduce(Pair.joined, side).map(lambda p: p.view(z.shape)) for side in zip(*parts, strict=True))
        return value, slope

    return applied


@in_parts
def gelu(z: Pair) -> tuple[Pair, Pair]:
    """z·Φ(z)."""
    cdf = normal_cdf(z)
    density = normal_factor(z) / like("sqrt(2*pi)", z.hi)
    return z * cdf, cdf + z * density


@in_parts
def gelu_tanh(z: Pair) -> tuple[Pair, Pair]:
    """z/2·(1 + tanh(√(2/π)·(z + 0.044715 z³))) = z·logistic of twice that."""
    square, c = z * z, 0.044715
    root = math.sqrt(2.0 / math.pi)  # rounded, as a weight is: it is the number that the model has
    inner = (z + square * z * c) * root
    gate = logistic(inner.scaled(2.0))
    slope = (square * c * 3.0 + 1.0) * root
    return z * gate, gate + z * gate * logistic(-inner.scaled(2.0)) * slope.scaled(2.0)


@in_parts
def silu(z: Pair) -> tuple[Pair, Pair]:
    gate = logistic(z)
    return z * gate, gate + z * gate * logistic(-z)


@in_parts
def quick_gelu(z: Pair) -> tuple[Pair, Pair]:
    """z·logistic(1.702 z)."""
    inner = z * 1.702
    gate = logistic(inner)
    return z * gate, gate + inner * gate * logistic(-inner)


@in_parts
def of_tanh(z: Pair) -> tuple[Pair, Pair]:
    """Its slope as 4·logistic(2z)·logistic(−2z): 1 − tanh² has no digits left where tanh is nearly 1."""
    twice = z.scaled(2.0)
    return tanh(z), (logistic(twice) * logistic(-twice)).scaled(4.0)


def relu(z: Pair) -> tuple[Pair, Pair]:
    on = of((z.hi > 0).double())
    return z * on.hi, on


def relu_squared(z: Pair) -> tuple[Pair, Pair]:
    """Its slope is continuous: no kink."""
    positive = z.where(z.hi > 0, 0.0)
    return positive * positive, positive.scaled(2.0)


KNOWN: dict[str, Activation] = {
    "ReLU": relu,
    "ReLUSquaredActivation": relu_squared,
    "GELUActivation": gelu,
    "NewGELUActivation": gelu_tanh,
    "GELUTanh": gelu_tanh,
    "SiLUActivation": silu,
    "SiLU": silu,
    "QuickGELUActivation": quick_gelu,
    "Tanh": of_tanh,
}


def activation(module: nn.Module) -> Activation | None:
    """The activation that a module of this name computes; None for one that is not known."""
    if isinstance(module, nn.GELU):
        return gelu if module.approximate == "none" else gelu_tanh
    return KNOWN.get(type(module).__name__)
