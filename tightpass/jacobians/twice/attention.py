"""Softmax attention at a point, in twice float64's precision: value, J·X and Jᵀ·Y."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import torch

from tightpass.jacobians.twice.functions import exp, of_tanh
from tightpass.jacobians.twice.maps import MULTIPLIED, Linear, Norm, Numbers
from tightpass.jacobians.twice.matrix import matmul, sliced, slices_of
from tightpass.jacobians.twice.pair import Pair, of, reciprocal_root
from tightpass.models.attention import Attended
from tightpass.models.formulas import HeadNorm, Rotation
from tightpass.models.norms import NormKind

Tensor = torch.Tensor

EXPONENTIALS = 24
"""Arrays of the scores' size while they become weights."""
HIDDEN = -1e30
"""What a mask adds to scores that are not to be seen is below this."""


class Side:
    """Queries, keys or values (heads, T, d_head) of x (T, d): a linear map, a norm of heads and a rotation, if there are any, each
    head as often as queries share it, and some of all these.

    biased   whether the map's bias is in y
    """

    def __init__(
        self,
        linear: Linear,
        norm: HeadNorm | None,
        rotation: Rotation | None,
        sizes: tuple[int, int],
        chosen: slice,
        x: Pair,
        biased: bool = True,
    ) -> None:
        self.linear, self.rotation, self.chosen = linear, rotation, chosen
        self.count, self.d_head = sizes  # heads of queries
        flat = linear(x) if biased else linear.push(x)
        self.shared = self.count * self.d_head // flat.shape[-1]
        at = _by_head(flat, self.d_head)
        self.wide, self.norm = norm is not None and norm.wide, None
        if norm is not None:
            self.norm = Norm(_as_given(norm), self._to_norm(at))
            at = self._from_norm(self.norm.y)
        self.y = self._repeated(self._turned(at))

    def push(self, tangents: Pair) -> Pair:
        """(k, T, d) -> (k, heads, T, d_head)."""
        at = _by_head(self.linear.push(tangents), self.d_head)
        if self.norm is not None:
            at = self._from_norm(self.norm.push(self._to_norm(at)))
        return self._repeated(self._turned(at))

    def pull(self, cotangents: Pair) -> Pair:
        """(k, heads, T, d_head) -> (k, T, d)."""
        at = self._back(self._placed(cotangents))
        if self.norm is not None:
            at = self._from_norm(self.norm.pull(self._to_norm(at)))
        return self.linear.pull(joined(at))

    def _repeated(self, at: Pair) -> Pair:
        return at.map(lambda part: part.repeat_interleave(self.shared, -3)[..., self.chosen, :, :])

    def _placed(self, at: Pair) -> Pair:
        """The transpose of `_repeated`."""

        def place(part: Tensor) -> Tensor:
            whole = part.new_zeros(*part.shape[:-3], self.count, *part.shape[-2:])
            whole[..., self.chosen, :, :] = part
            return whole

        whole = at if at.shape[-3] == self.count else at.map(place)
        return whole if self.shared == 1 else whole.map(lambda part: part.unflatten(-3, (-1, self.shared))).sum(-3)

    def _to_norm(self, at: Pair) -> Pair:
        return joined(at) if self.wide else at

    def _from_norm(self, at: Pair) -> Pair:
        return _by_head(at, self.d_head) if self.wide else at

    def _turned(self, at: Pair) -> Pair:
        if self.rotation is None:
            return at
        turning, rest, cos, sin = self._split(at)
        return _beside(turning * cos + turning.map(self.rotation.half) * sin, rest)

    def _back(self, at: Pair) -> Pair:
        if self.rotation is None:
            return at
        turning, rest, cos, sin = self._split(at)
        return _beside(turning * cos - (turning * sin).map(self.rotation.half), rest)

    def _split(self, at: Pair) -> tuple[Pair, Pair, Tensor, Tensor]:
        assert self.rotation is not None
        cos, sin = (table.double() for table in (self.rotation.cos, self.rotation.sin))
        r = cos.shape[-1]
        return at[..., :r], at[..., r:], cos, sin


def _as_given(norm: HeadNorm) -> NormKind:
    """Its weights as they stand beside what is normed: (heads·d_head,) of all heads together, else (heads or 1, 1, d_head)."""

    def laid(part: Tensor | None) -> Tensor | None:
        if part is None:
            return None
        return part.flatten() if norm.wide else part[:, None]

    return replace(norm.kind, weight=laid(norm.kind.weight), bias=laid(norm.kind.bias))


def _beside(first: Pair, second: Pair) -> Pair:
    return Pair(torch.cat([first.hi, second.hi], -1), torch.cat([first.lo, second.lo], -1))


def _by_head(at: Pair, d_head: int) -> Pair:
    """(.., T, heads·d_head) as (.., heads, T, d_head)."""
    return at.map(lambda part: part.unflatten(-1, (-1, d_head)).transpose(-2, -3))


def joined(at: Pair) -> Pair:
    """(.., heads, T, d_head) as (.., T, heads·d_head)."""
    return at.map(lambda part: part.transpose(-2, -3).flatten(-2))


class Attention:
    """Σ_h Wo_h·softmax(cap(scale·q_h k_hᵀ) + mask)·v_h of all heads, or of one, whose share of the output map is given.

    value_bias   that of the values' map, where it is not in them: it passes unchanged, since weights sum to 1
    """

    def __init__(
        self,
        sides: Sequence[Side],
        output: Linear,
        scale: float,
        given: Attended,
        causal: bool,
        value_bias: Tensor | None,
        whole: bool,
    ) -> None:
        self.sides, self.output, self.scale = sides, output, _exact(scale, sides[0].d_head, sides[0].y)
        q, k, v = (side.y for side in sides)
        self.bend: Pair | None = None
        scores = matmul(q, sliced(k.mT)) * self.scale
        if given.cap is not None:
            value, self.bend = of_tanh(scores / given.cap)
            scores = value * given.cap
        self.a = _weights(scores, given, causal, sides[0].chosen)  # (H, T, T)
        self.q, self.qT, self.k, self.kT, self.v, self.vT = (sliced(p) for p in (q, q.mT, k, k.mT, v, v.mT))
        self.a_rows, self.aT = sliced(self.a), sliced(self.a.mT)
        o = joined(matmul(self.a, self.v))
        o = o if value_bias is None else o + of(value_bias)
        self.y = self.output(o) if whole else self.output.push(o)

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
    def saturated(self) -> int:
        """Softmax rows whose largest weight is below 1 but rounds to 1 in float32."""
        top = self.a.hi.amax(-1)
        return int(((top.float() == 1) & (top < 1)).sum())

    def push(self, tangents: Pair) -> Pair:
        dq, dk, dv = (side.push(tangents) for side in self.sides)
        g = self._bent((matmul(dq, self.kT) + matmul(dk, self.qT).mT) * self.scale)
        mixed = matmul(self._through_softmax(g), self.v) + matmul(dv.mT, self.aT).mT
        return self.output.push(joined(mixed))

    def pull(self, cotangents: Pair) -> Pair:
        g = _by_head(self.output.pull(cotangents), self.sides[0].d_head)
        ds = self._bent(self._through_softmax(matmul(g, self.vT))) * self.scale
        parts = matmul(ds, self.k), matmul(ds.mT, self.q), matmul(g.mT, self.a_rows).mT
        return reduce(Pair.__add__, [side.pull(part) for side, part in zip(self.sides, parts, strict=True)])

    def _bent(self, at: Pair) -> Pair:
        """Derivatives of capped scores."""
        return at if self.bend is None else at * self.bend

    def _through_softmax(self, g: Pair) -> Pair:
        """a∘(g − Σ_s a·g), the softmax's Jacobian on scores (.., T, T); it is symmetric. A sink's score never moves."""
        return self.a * (g - (self.a * g).sum(-1, keepdim=True))


def _exact(scale: float, d_head: int, like: Pair) -> Pair:
    """1/√d_head where that is what the scale was rounded from; any other number is what the model has."""
    if scale == d_head**-0.5:
        return reciprocal_root(of(like.hi.new_tensor(float(d_head))))
    return of(like.hi.new_tensor(scale))


def _weights(scores: Pair, given: Attended, causal: bool, chosen: slice) -> Pair:
    """The softmax of masked scores, beside those of sinks."""
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.hi.device)
    seen = seen.tril() if causal else seen
    if given.mask is not None:
        mask = given.mask.double()[chosen if len(given.mask) > 1 else slice(None)]
        seen = seen & (mask > HIDDEN)
        scores = scores + torch.where(mask > HIDDEN, mask, 0.0)
    seen = seen.expand(scores.shape)
    if given.sinks is not None:
        column = of(given.sinks[chosen])[:, None, None].map(lambda part: part.expand(*scores.shape[:-1], 1))
        scores, seen = _beside(scores, column), torch.nn.functional.pad(seen, (0, 1), value=True)
    top = _largest(scores.where(seen, -torch.inf))
    grown = exp(scores - top).where(seen, 0.0)
    weights = grown / grown.sum(-1, keepdim=True)
    return weights if given.sinks is None else weights[..., :-1]


def _largest(scores: Pair) -> Pair:
    """Of each row, in both parts: of scores of 1e20 the low one is thousands, and tells apart those whose high one is the same."""
    high = scores.hi.amax(-1, keepdim=True)
    low = torch.where(scores.hi == high, scores.lo, -torch.inf).amax(-1, keepdim=True)
    return Pair(high, low)
