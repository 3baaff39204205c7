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

from tightpass.jacobians.twice.functions import activation, exp
from tightpass.jacobians.twice.matrix import cutting, matmul, sliced, slices_of
from tightpass.jacobians.twice.pair import Pair, of, reciprocal_root
from tightpass.jacobians.unknown import NoClosedFormError
from tightpass.models.linear import is_plain_linear

Tensor = torch.Tensor


MULTIPLIED = 16
"""Arrays of the widest intermediate while it is multiplied, entry by entry, and cut for the next product."""
EXPONENTIALS = 24
"""Arrays of the scores' size while they become weights."""


@dataclass(frozen=True)
class Numbers:
    """How many float64 numbers a map takes: `held` of weights, `pieces` that are made anew with each map, `making` beside
    both, and `column` for each column of a product."""

    held: int
    pieces: int
    making: int
    column: int


class Map(Protocol):
    """A function at a point: its value y (T, d_out), products with its Jacobian, and the attentions inside."""

    y: Pair

    @property
    def attentions(self) -> tuple[Attention, ...]: ...
    def push(self, tangents: Pair) -> Pair: ...
    def pull(self, cotangents: Pair) -> Pair: ...


class Linear:
    """W·x + b, or of some of the inputs alone."""

    attentions: tuple[Attention, ...] = ()

    def __init__(self, module: nn.Module, inputs: slice = slice(None)) -> None:
        if not isinstance(module, nn.Linear) or not is_plain_linear(module):
            raise NoClosedFormError(f"no closed form for {type(module).__name__}")
        weight = module.weight.detach()[:, inputs]
        self.rows, self.columns = sliced(weight), sliced(weight.mT)
        self.bias = None if module.bias is None else of(module.bias)

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
    """A LayerNorm at x."""

    attentions: tuple[Attention, ...] = ()

    def __init__(self, module: nn.Module, x: Pair) -> None:
        if type(module) is not nn.LayerNorm:
            raise NoClosedFormError(f"no closed form for {type(module).__name__}")
        centred = _less_mean(x)
        self.r = reciprocal_root(_mean(centred * centred) + float(module.eps))
        self.xhat = centred * self.r
        self.gamma = None if module.weight is None else of(module.weight)
        y = self._scaled(self.xhat)
        self.y = y if module.bias is None else y + of(module.bias)

    def push(self, tangents: Pair) -> Pair:
        return self._scaled(self._inner(tangents))

    def pull(self, cotangents: Pair) -> Pair:
        return self._inner(self._scaled(cotangents))

    def _scaled(self, at: Pair) -> Pair:
        return at if self.gamma is None else at * self.gamma

    def _inner(self, at: Pair) -> Pair:
        """r·(I − 11ᵀ/d − x̂x̂ᵀ/d), which is symmetric."""
        return (_less_mean(at) - self.xhat * _mean(self.xhat * at)) * self.r


def _mean(x: Pair) -> Pair:
    return x.sum(-1, keepdim=True) / float(x.shape[-1])


def _less_mean(x: Pair) -> Pair:
    return x - _mean(x)


class MLP:
    """down(act(up(x))); `pattern` (T, d_ff) holds the units that are active."""

    attentions: tuple[Attention, ...] = ()

    def __init__(self, up: Linear, act: nn.Module, down: Linear, x: Pair, pattern: Tensor | None) -> None:
        self.up, self.down = up, down
        z = self.up(x)
        if pattern is not None:
            self.slope = of(pattern)
            value = z * self.slope.hi
        else:
            known = activation(act)
            if known is None:
                raise NoClosedFormError(f"no closed form for {type(act).__name__}")
            value, self.slope = known(z)
        self.y = self.down(value)

    def push(self, tangents: Pair) -> Pair:
        return self.down.push(self.up.push(tangents) * self.slope)

    def pull(self, cotangents: Pair) -> Pair:
        return self.up.pull(self.down.pull(cotangents) * self.slope)

    @staticmethod
    def numbers(tokens: int, d: int, d_ff: int, digits: int) -> Numbers:
        (up, cutting), (down, _) = Linear.numbers(d, d_ff, digits), Linear.numbers(d_ff, d, digits)
        widest = MULTIPLIED * tokens * max(d, d_ff)
        return Numbers(up + down, 2 * tokens * d_ff, max(cutting, widest), widest)


class Attention:
    """Σ_h Wo_h·softmax(q_h k_hᵀ/√d_head)·v_h of all heads, or of one, whose share of the output projection is given."""

    def __init__(
        self, weights: Sequence[Linear], output: Linear, count: int, causal: bool, x: Pair, head: int | None
    ) -> None:
        self.count = count
        # what all keys, or all values, have in common cancels in J: without it less is rounded
        q, k, v = (self._by_head(part) for part in (weights[0](x), weights[1].push(x), weights[2].push(x)))
        d_head = q.shape[-1]
        chosen = slice(None) if head is None else slice(head, head + 1)
        self.scale = reciprocal_root(of(torch.full((), float(d_head), dtype=torch.float64, device=x.hi.device)))
        self.weights, self.chosen = weights, chosen
        q, k, v = q[chosen], k[chosen], v[chosen]
        scores = matmul(q, sliced(k.mT)) * self.scale
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.hi.device)
        seen = seen.tril() if causal else seen
        visible = scores.where(seen, -torch.inf)
        top = _largest(visible)
        grown = exp(scores - top).where(seen, 0.0)
        self.a = grown / grown.sum(-1, keepdim=True)  # (H, T, T)
        self.q, self.qT, self.k, self.kT, self.v, self.vT = (sliced(p) for p in (q, q.mT, k, k.mT, v, v.mT))
        self.a_rows, self.aT = sliced(self.a), sliced(self.a.mT)
        self.output = output
        o = self._joined(matmul(self.a, self.v))
        if weights[2].bias is not None:
            o = o + (weights[2].bias if head is None else weights[2].bias[head * d_head : (head + 1) * d_head])
        self.y = self.output.push(o) if head is not None else self.output(o)

    @staticmethod
    def numbers(tokens: int, d: int, heads: int, d_head: int, count: int, digits: int) -> Numbers:
        """Of `count` heads, whose queries, keys and values are made of the weights of all."""
        held, cutting = Linear.numbers(d, heads * d_head, digits)
        weights, activations = count * tokens**2, tokens * max(d, heads * d_head)
        pieces = weights * (2 + 2 * slices_of(tokens)) + 6 * slices_of(max(tokens, d_head)) * tokens * count * d_head
        return Numbers(
            held=3 * held + held * count // heads,
            pieces=pieces,
            making=max(cutting, EXPONENTIALS * weights + 6 * activations),
            column=MULTIPLIED * max(weights, activations) + 6 * activations,
        )

    @property
    def attentions(self) -> tuple[Attention, ...]:
        return (self,)

    @property
    def saturated(self) -> int:
        """Softmax rows whose largest weight is below 1 but rounds to 1 in float32."""
        top = self.a.hi.amax(-1)
        return int(((top.float() == 1) & (top < 1)).sum())

    def push(self, tangents: Pair) -> Pair:
        dq, dk, dv = (self._by_head(linear.push(tangents))[..., self.chosen, :, :] for linear in self.weights)
        g = (matmul(dq, self.kT) + matmul(dk, self.qT).mT) * self.scale
        mixed = matmul(self._through_softmax(g), self.v) + matmul(dv.mT, self.aT).mT
        return self.output.push(self._joined(mixed))

    def pull(self, cotangents: Pair) -> Pair:
        g = self._by_head(self.output.pull(cotangents), self.a.shape[0])
        ds = self._through_softmax(matmul(g, self.vT)) * self.scale
        parts = matmul(ds, self.k), matmul(ds.mT, self.q), matmul(g.mT, self.a_rows).mT
        back = [linear.pull(self._joined(self._placed(p))) for linear, p in zip(self.weights, parts, strict=True)]
        return reduce(Pair.__add__, back)

    def _through_softmax(self, g: Pair) -> Pair:
        """a∘(g − Σ_s a·g), the softmax's Jacobian on scores (.., T, T); it is symmetric."""
        return self.a * (g - (self.a * g).sum(-1, keepdim=True))

    def _by_head(self, at: Pair, count: int | None = None) -> Pair:
        """(.., T, H·d_head) as (.., H, T, d_head)."""
        return at.map(lambda part: part.unflatten(-1, (count or self.count, -1)).transpose(-2, -3))

    def _joined(self, at: Pair) -> Pair:
        """(.., H, T, d_head) as (.., T, H·d_head)."""
        return at.map(lambda part: part.transpose(-2, -3).flatten(-2))

    def _placed(self, at: Pair) -> Pair:
        """Of one head among all: zeros for the others."""

        def place(part: Tensor) -> Tensor:
            whole = part.new_zeros(*part.shape[:-3], self.count, *part.shape[-2:])
            whole[..., self.chosen, :, :] = part
            return whole

        return at if at.shape[-3] == self.count else at.map(place)


def _largest(scores: Pair) -> Pair:
    """Of each row, in both parts: of scores of 1e20 the low one is thousands, and tells apart those whose high one is the same."""
    high = scores.hi.amax(-1, keepdim=True)
    low = torch.where(scores.hi == high, scores.lo, -torch.inf).amax(-1, keepdim=True)
    return Pair(high, low)


class Chain:
    """One map after the other."""

    def __init__(self, first: Map, *others: Map) -> None:
        self.maps, self.y = (first, *others), (others[-1] if others else first).y
        self.attentions = tuple(a for piece in self.maps for a in piece.attentions)

    def push(self, tangents: Pair) -> Pair:
        return reduce(lambda at, piece: piece.push(at), self.maps, tangents)

    def pull(self, cotangents: Pair) -> Pair:
        return reduce(lambda at, piece: piece.pull(at), reversed(self.maps), cotangents)


class Residual:
    """x + f(x)."""

    def __init__(self, inner: Map, x: Pair) -> None:
        self.inner, self.y, self.attentions = inner, inner.y + x, inner.attentions

    def push(self, tangents: Pair) -> Pair:
        return self.inner.push(tangents) + tangents

    def pull(self, cotangents: Pair) -> Pair:
        return self.inner.pull(cotangents) + cotangents
