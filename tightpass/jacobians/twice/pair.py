"""Numbers in twice float64's precision: unevaluated sums of two float64 tensors, elementwise.

Errors of sums and products of float64 numbers are float64 numbers themselves, and are found without branches (Dekker 1971;
Knuth 1969; Hida, Li & Bailey 2001). Torch's operations are rounded one by one, which this relies on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

Tensor = torch.Tensor
SPLIT = 2.0**27 + 1
NOISE = 2.0**-72
"""Of perturbed arithmetic: far above any rounding of ours (2⁻⁸⁰ in products of matrices), far below float64's."""
_source: ContextVar[torch.Generator | None] = ContextVar("source of noise", default=None)


@contextmanager
def perturbed(seed: int) -> Iterator[None]:
    """Inside, every result is off by a random part of about `NOISE` of what it was rounded from.

    How much comes out otherwise bounds what the rounding of the same computation did (Monte Carlo arithmetic, Parker 1997):
    unlike a second computation with fewer bits, it also shows what cancels where the bits end, as 1 − x̂² does for x̂ = 1.
    """
    before = _source.set(torch.Generator().manual_seed(seed))
    try:
        yield
    finally:
        _source.reset(before)


def noise(like: Tensor) -> Tensor | None:
    """Random parts, a few `NOISE` large; None where nothing is to be perturbed."""
    source = _source.get()
    if source is None:
        return None
    return torch.randn(like.shape, generator=source, dtype=torch.float64).to(like.device) * NOISE


@dataclass(frozen=True)
class Pair:
    """hi + lo with |lo| ≤ half a rounding of hi: about 106 bits."""

    hi: Tensor
    lo: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.hi.shape

    def map(self, f: Any) -> Pair:
        """A rearrangement of the entries, such as a view, of both parts."""
        return Pair(f(self.hi), f(self.lo))

    def __getitem__(self, index: Any) -> Pair:
        return Pair(self.hi[index], self.lo[index])

    @property
    def mT(self) -> Pair:
        return Pair(self.hi.mT, self.lo.mT)

    def __neg__(self) -> Pair:
        return Pair(-self.hi, -self.lo)

    def __add__(self, other: Pair | Tensor | float) -> Pair:
        if not isinstance(other, Pair):
            high, low = two_sum(self.hi, other)
            return _result(high, low + self.lo)
        high, low = two_sum(self.hi, other.hi)
        high2, low2 = two_sum(self.lo, other.lo)
        high, low = fast_two_sum(high, low + high2)
        return _result(high, low + low2)

    def __sub__(self, other: Pair | Tensor | float) -> Pair:
        return self + (-other)

    def __mul__(self, other: Pair | Tensor | float) -> Pair:
        if not isinstance(other, Pair):
            high, low = two_product(self.hi, other)
            return _result(high, low + self.lo * other)
        high, low = two_product(self.hi, other.hi)
        return _result(high, low + (self.hi * other.lo + self.lo * other.hi))

    def __truediv__(self, other: Pair | Tensor | float) -> Pair:
        if not isinstance(other, Pair):
            other = of(torch.as_tensor(other, dtype=torch.float64, device=self.hi.device))
        first = self.hi / other.hi
        rest = self - other * first
        second = rest.hi / other.hi
        rest = rest - other * second
        return renormalised(first, second) + rest.hi / other.hi

    def scaled(self, power: float | Tensor) -> Pair:
        """Times powers of two, which is exact."""
        return Pair(self.hi * power, self.lo * power)

    def sum(self, axis: int, keepdim: bool = False) -> Pair:
        """Σ over an axis, by halves."""
        high, low = self.hi.movedim(axis, 0), self.lo.movedim(axis, 0)
        total = Pair(high, low)
        while (n := total.hi.shape[0]) > 1:
            half = n // 2
            folded = total[:half] + total[half : 2 * half]
            total = folded if n % 2 == 0 else folded.joined(total[-1:])
        found = total[0] if high.shape[0] else Pair(high.sum(0), low.sum(0))
        return found.map(lambda part: part.unsqueeze(axis)) if keepdim else found

    def joined(self, other: Pair) -> Pair:
        """Both below each other, along the first axis."""
        return Pair(torch.cat([self.hi, other.hi]), torch.cat([self.lo, other.lo]))

    def where(self, condition: Tensor, other: float) -> Pair:
        """Entries where the condition holds, and a number elsewhere."""
        return Pair(torch.where(condition, self.hi, other), torch.where(condition, self.lo, 0.0))

    def rounded(self) -> Tensor:
        """The nearest float64."""
        return self.hi + self.lo


def of(values: Tensor) -> Pair:
    """float32 or float64 numbers, exactly."""
    wide = values.detach().double()
    return Pair(wide, torch.zeros_like(wide))


def two_sum(a: Tensor, b: Tensor | float) -> tuple[Tensor, Tensor]:
    """a + b as its rounded value and the error of that."""
    total = a + b
    seen = total - a
    return total, (a - (total - seen)) + (b - seen)


def fast_two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The same where |a| ≥ |b|."""
    total = a + b
    return total, b - (total - a)


def renormalised(a: Tensor, b: Tensor) -> Pair:
    return Pair(*fast_two_sum(a, b))


def _result(high: Tensor, low: Tensor) -> Pair:
    """What an operation gives, perturbed where that is asked for."""
    part = noise(high)
    return renormalised(high, low if part is None else low + high * part)


def two_product(a: Tensor, b: Tensor | float) -> tuple[Tensor, Tensor]:
    """a·b as its rounded value and the error of that."""
    product = a * b
    a_high, a_low = _halves(a)
    b_high, b_low = _halves(b)
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def _halves(a: Any) -> tuple[Any, Any]:
    wide = a * SPLIT
    high = wide - (wide - a)
    return high, a - high


def reciprocal_root(a: Pair) -> Pair:
    """1/√a for a > 0: one step of Newton's from float64."""
    guess = a.hi.rsqrt()
    rest = -(a * guess * guess) + 1.0
    return of(guess) + (rest + rest * rest * 0.75) * (guess / 2)
