"""Products of matrices in more than float64's precision, by the BLAS in float64.

Both factors are cut into slices of so few bits that every product of slices is exact, and those that matter are
added up in pairs (Ozaki, Ogita, Oishi & Rump 2012).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from tightpass.jacobians.twice.pair import Pair, fast_two_sum, noise, of, renormalised, two_sum

Tensor = torch.Tensor
BITS = 80
"""A product is right to about 2⁻⁸⁰ of the largest entries of a row and a column."""

SPREAD = 24
"""Binary digits between the largest and the smallest entries of a row or column of weights, about."""
CUT = 6
"""Arrays of a matrix's size while it is cut, beside the slices that stay: the low part that it comes with, what is left of it
in two parts, two places for the next of these, and a slice that turns out to be zero."""
AT_ONCE = 2**20
"""Entries of a right factor that are cut at a time."""


@dataclass(frozen=True)
class Sliced:
    """The right factor (.., k, n), cut once: `slices` add up to it, columns in units of their own.

    They are held in float32 where that has all their bits, which is nearly always.
    """

    slices: tuple[Tensor, ...]

    @property
    def depth(self) -> int:
        return self.slices[0].shape[-2]


def bits_of(depth: int) -> int:
    """How many bits a slice may have where products have `depth` terms."""
    return (53 - math.ceil(math.log2(max(depth, 2)))) // 2


def slices_of(depth: int, digits: int = BITS) -> int:
    """How many slices a factor has whose entries have so many binary digits."""
    return math.ceil(min(BITS, digits + SPREAD) / bits_of(depth))


def cut(matrix: Pair, axis: int, depth: int) -> tuple[Tensor, ...]:
    """Slices of the rows (axis = −1) or columns (axis = −2), the largest first; those that are zero are left out."""
    bits, slices = bits_of(depth), list[Tensor]()
    top = torch.frexp(matrix.hi.abs().amax(axis, keepdim=True))[1]
    high, low = matrix.hi.clone(), matrix.lo.clone()
    total, seen = (
        torch.empty_like(high),
        torch.empty_like(high),
    )  # a new place for each step would not fit where one was freed
    for level in range(1, math.ceil(BITS / bits) + 1):
        unit = torch.ldexp(torch.ones_like(top, dtype=torch.float64), (top - level * bits).clamp(min=-1000))
        slices.append((high / unit).round_().mul_(unit))
        high.sub_(slices[-1])
        torch.add(high, low, out=total)  # the two parts of what is left, as `renormalised` has them
        low.sub_(torch.sub(total, high, out=seen))
        high, total = total, high
    while len(slices) > 1 and not slices[-1].any():
        slices.pop()
    return tuple(slices)


def sliced(matrix: Pair | Tensor) -> Sliced:
    """A right factor (.., k, n) that is used again and again."""
    depth, width = matrix.shape[-2:]
    columns = max(1, AT_ONCE * width // max(1, math.prod(matrix.shape)))
    stretches = (matrix[..., first : first + columns] for first in range(0, max(1, width), columns))
    parts = [_compact(cut(part if isinstance(part, Pair) else of(part), -2, depth)) for part in stretches]
    if len(parts) == 1:
        return Sliced(tuple(parts[0]))
    return Sliced(tuple(_level(parts, i) for i in range(max(map(len, parts)))))


def _compact(slices: tuple[Tensor, ...]) -> list[Tensor]:
    """In float32 if that is exact for all of them."""
    small = [part.float() for part in slices]
    return small if all(torch.equal(a.double(), b) for a, b in zip(small, slices, strict=True)) else list(slices)


def _level(parts: list[list[Tensor]], level: int) -> Tensor:
    """One slice of all columns, zero where a part has no such; what it is made of is let go."""
    found = [part[level] if level < len(part) else torch.zeros_like(part[-1]) for part in parts]
    for part in parts:
        if level + 1 < len(part):
            part[level] = part[level][..., :0]
    return torch.cat(found, -1)


def cutting(entries: int) -> int:
    """Numbers that are there while a factor of so many entries is cut, or a slice of it widened again, beside the slices."""
    return min(entries, AT_ONCE) * CUT + entries


def matmul(left: Pair, right: Pair | Sliced) -> Pair:
    """left (.., m, k) times right (.., k, n)."""
    factor = right if isinstance(right, Sliced) else sliced(right)
    rows = cut(left, -1, factor.depth)
    levels = math.ceil(BITS / bits_of(factor.depth))
    total: Pair | None = None
    for level in range(levels):  # from the largest products to the smallest
        for i in range(max(0, level - len(factor.slices) + 1), min(level + 1, len(rows))):
            product = rows[i] @ factor.slices[level - i].double()
            if total is None:
                total = Pair(product, torch.zeros_like(product))
            else:
                high, low = two_sum(total.hi, product)
                total = Pair(*fast_two_sum(high, low + total.lo))
    assert total is not None
    part = noise(total.hi)
    if part is None:
        return total
    largest = left.hi.abs().amax(-1, keepdim=True) * factor.slices[0].abs().amax(-2, keepdim=True)
    return renormalised(total.hi, total.lo + part * math.sqrt(factor.depth) * largest)
