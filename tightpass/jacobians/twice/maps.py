"""Pieces of a transformer at a point, in twice float64's precision: value, J·X and Jᵀ·Y.

The formulas are those of the models, written down once more and plainly: what the closed forms and automatic
differentiation computed in float64 or float32 is measured against these. Activations are (T, width), tangents and
cotangents (k, T, width).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import torch
from torch import nn

from tightpass.jacobians.twice.functions import activation
from tightpass.jacobians.twice.matrix import cutting, matmul, sliced, slices_of
from tightpass.jacobians.twice.pair import Pair, of, reciprocal_root
from tightpass.models.formulas import NoFormulasError
from tightpass.models.linear import Affine
from tightpass.models.norms import NormKind

Tensor = torch.Tensor


MULTIPLIED = 16
"""Arrays of the widest intermediate while it is multiplied, entry by entry, and cut for the next product."""


@dataclass(frozen=True)
class Numbers:
    """How many float64 numbers a map takes: `held` of weights, `pieces` that are made anew with each map, `making` beside
    both, and `column` for each column of a product."""

    held: int
    pieces: int
    making: int
    column: int


class Map(Protocol):
    """A function at a point: its value y (T, d_out), products with its Jacobian, and how many softmax rows inside are saturated."""

    y: Pair

    @property
    def saturated(self) -> int: ...
    def push(self, tangents: Pair) -> Pair: ...
    def pull(self, cotangents: Pair) -> Pair: ...


class Linear:
    """W·x + b, or of some of the inputs alone."""

    saturated = 0

    def __init__(self, map_: Affine, inputs: slice = slice(None)) -> None:
        weight = map_.weight[:, inputs]
        self.rows, self.columns = sliced(weight), sliced(weight.mT)
        self.bias = None if map_.bias is None else of(map_.bias)

    def __call__(self, x: Pair) -> Pair:
        y = self.push(x)
        return y if self.bias is None else y + self.bias

    def push(self, tangents: Pair) -> Pair:
        return matmul(tangents, self.columns)

    def pull(self, cotangents: Pair) -> Pair:
        return matmul(cotangents, self.rows)

    @staticmethod
    def numbers(inputs: int, outputs: int, digits: int) -> tuple[int, int]:
        """Of weights with so many digits: slices of rows and columns, and what is there while they are cut."""
        entries = inputs * outputs
        slices = slices_of(inputs, digits) + slices_of(outputs, digits)
        return entries * slices // 2, cutting(entries)  # float32 is half a number


class Norm:
    """A LayerNorm or RMSNorm over the last axis of x."""

    saturated = 0

    def __init__(self, kind: NormKind, x: Pair) -> None:
        self.centred = kind.centred
        centred = _less_mean(x) if kind.centred else x
        self.r = reciprocal_root(_mean(centred * centred) + float(kind.eps))
        self.xhat = centred * self.r
        self.gamma = None if kind.weight is None else of(kind.weight)
        if self.gamma is not None and kind.offset != 0:
            self.gamma = self.gamma + kind.offset
        y = self._scaled(self.xhat)
        self.y = y if kind.bias is None else y + of(kind.bias)

    def push(self, tangents: Pair) -> Pair:
        return self._scaled(self._inner(tangents))

    def pull(self, cotangents: Pair) -> Pair:
        return self._inner(self._scaled(cotangents))

    def _scaled(self, at: Pair) -> Pair:
        return at if self.gamma is None else at * self.gamma

    def _inner(self, at: Pair) -> Pair:
        """r·(I − 11ᵀ/d − x̂x̂ᵀ/d), which is symmetric; without the mean of an RMSNorm."""
        at_centre = _less_mean(at) if self.centred else at
        return (at_centre - self.xhat * _mean(self.xhat * at)) * self.r


def _mean(x: Pair) -> Pair:
    return x.sum(-1, keepdim=True) / float(x.shape[-1])


def _less_mean(x: Pair) -> Pair:
    return x - _mean(x)


class MLP:
    """down(act(up(x))), or down(act(gate(x))∘up(x)) of two first maps; `pattern` (T, d_ff) holds the units that are active."""

    saturated = 0

    def __init__(self, firsts: Sequence[Linear], act: nn.Module, down: Linear, x: Pair, pattern: Tensor | None) -> None:
        self.firsts, self.down = firsts, down
        z, *up = (first(x) for first in firsts)
        value, slope = _activated(act, z, pattern)
        self.slopes = [slope * up[0], value] if up else [slope]
        self.y = self.down(value * up[0] if up else value)

    def push(self, tangents: Pair) -> Pair:
        inner = [first.push(tangents) * slope for first, slope in zip(self.firsts, self.slopes, strict=True)]
        return self.down.push(reduce(Pair.__add__, inner))

    def pull(self, cotangents: Pair) -> Pair:
        inner = self.down.pull(cotangents)
        return reduce(
            Pair.__add__, [first.pull(inner * slope) for first, slope in zip(self.firsts, self.slopes, strict=True)]
        )

    @staticmethod
    def numbers(tokens: int, d: int, d_ff: int, digits: int, firsts: int) -> Numbers:
        (up, cutting), (down, _) = Linear.numbers(d, d_ff, digits), Linear.numbers(d_ff, d, digits)
        widest = (MULTIPLIED + 4 * (firsts - 1)) * tokens * max(d, d_ff)
        return Numbers(firsts * up + down, 2 * firsts * tokens * d_ff, max(cutting, widest), widest)


def _activated(act: nn.Module, z: Pair, pattern: Tensor | None) -> tuple[Pair, Pair]:
    """Value and slope at z."""
    if pattern is not None:
        held = of(pattern)
        return z * held.hi, held
    known = activation(act)
    if known is None:
        raise NoFormulasError(f"no formulas for {type(act).__name__}")
    return known(z)


class Chain:
    """One map after the other."""

    def __init__(self, first: Map, *others: Map) -> None:
        self.maps, self.y = (first, *others), (others[-1] if others else first).y
        self.saturated = sum(piece.saturated for piece in self.maps)

    def push(self, tangents: Pair) -> Pair:
        return reduce(lambda at, piece: piece.push(at), self.maps, tangents)

    def pull(self, cotangents: Pair) -> Pair:
        return reduce(lambda at, piece: piece.pull(at), reversed(self.maps), cotangents)


class Residual:
    """x + f(x) + .."""

    def __init__(self, x: Pair, *inner: Map) -> None:
        self.inner, self.y = inner, reduce(Pair.__add__, [piece.y for piece in inner]) + x
        self.saturated = sum(piece.saturated for piece in inner)

    def push(self, tangents: Pair) -> Pair:
        return reduce(Pair.__add__, [piece.push(tangents) for piece in self.inner]) + tangents

    def pull(self, cotangents: Pair) -> Pair:
        return reduce(Pair.__add__, [piece.pull(cotangents) for piece in self.inner]) + cotangents


class Scaled:
    """f(x) times a number, or one for each feature (d,)."""

    def __init__(self, inner: Map, factor: float | Tensor) -> None:
        self.inner, self.factor, self.y = inner, factor, inner.y * factor
        self.saturated = inner.saturated

    def push(self, tangents: Pair) -> Pair:
        return self.inner.push(tangents) * self.factor

    def pull(self, cotangents: Pair) -> Pair:
        return self.inner.pull(cotangents) * self.factor
