"""A block at its x in twice float64's precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from tightpass.jacobian.forms.norm import NoClosedFormError
from tightpass.jacobian.probe import ratio
from tightpass.jacobian.twice.maps import MLP, Attention, Chain, Map, Norm, Residual
from tightpass.jacobian.twice.pair import Pair, of
from tightpass.models.blocks import Block
from tightpass.models.families import LayerParts

ELEMENTS = 2**21
"""Entries of the widest intermediate of a product: as many columns at once as that allows."""
RESOLUTION = 2.0**-66
"""Rounding of the products relative to ‖J‖_F: they carry about 80 bits of the numbers that are summed, .."""
SPARE = 2.0**10
""".. which are up to so much larger than what comes out; where they are larger still, their own size counts."""
AGREE = {torch.float64: 1e-6, torch.float32: 1e-2}
"""How far the block's own value may be from that of the formulas, relative to it, before they are taken for another function."""


class Twice:
    """J·X and Jᵀ·Y of a block for X (k, T, d) in twice float64's precision; `saturated` softmax rows inside.

    rounding   what these products themselves may be off by, for a J of a known ‖J‖_F
    """

    def __init__(self, block: Block) -> None:
        self.map = of_block(block)
        attentions = list(_attentions(self.map))
        # of several layers in a row the product of their sizes would say nothing: RESOLUTION of what comes out has to do
        self.size = 0.0 if block.kind in ("layer", "model") else self.map.size
        self.saturated = sum(attention.saturated for attention in attentions)
        tokens, heads = block.tokens, max((a.count for a in attentions), default=0)
        self.at_once = max(1, ELEMENTS // (tokens * max(block.width, heads * tokens)))

    def rounding(self, norm: float) -> float:
        return RESOLUTION * (norm + self.size / SPARE)

    def push(self, tangents: Pair) -> Pair:
        return self._in_parts(self.map.push, tangents)

    def pull(self, cotangents: Pair) -> Pair:
        return self._in_parts(self.map.pull, cotangents)

    def _in_parts(self, product: Callable[[Pair], Pair], columns: Pair) -> Pair:
        count = columns.shape[0]
        parts = [product(columns[start : start + self.at_once]) for start in range(0, count, self.at_once)]
        return Pair(torch.cat([part.hi for part in parts]), torch.cat([part.lo for part in parts]))


def twice(block: Block) -> Twice | None:
    """None where the block has a piece that the formulas do not know, or computes something else than they say."""
    with torch.no_grad():
        try:
            found = Twice(block)
        except NoClosedFormError:
            return None
        y = found.map.y.rounded()
        apart = float((block(block.x).double() - y).norm())
        return found if ratio(apart, float(y.norm())) <= AGREE[block.x.dtype] else None


def of_block(block: Block) -> Map:
    """Raises NoClosedFormError for a piece without formulas."""
    x, kind = of(block.x), block.kind
    patterns = _patterns(block)
    if kind in ("layer", "model"):
        pieces: list[Map] = []
        for parts, pattern in zip(block.layers, patterns, strict=True):
            pieces.append(_layer(block, parts, x, pattern))
            x = pieces[-1].y
        if block.final_norm is not None:
            pieces.append(Norm(block.final_norm, x))
        return Chain(*pieces)
    parts = block.layers[0]
    norm = parts.mlp_norm if kind == "mlp" else parts.attn_norm
    inner = _read_through(
        norm if block.options.norm else None,
        x,
        lambda h: _mlp(parts, h, patterns[0]) if kind == "mlp" else _attention(block, parts, h, block.options.head),
    )
    return Residual(inner, x) if block.options.residual else inner


def _read_through(norm: nn.Module | None, x: Pair, piece: Callable[[Pair], Map]) -> Map:
    if norm is None:
        return piece(x)
    normed = Norm(norm, x)
    return Chain(normed, piece(normed.y))


def _mlp(parts: LayerParts, x: Pair, pattern: torch.Tensor | None) -> MLP:
    return MLP(parts.up, parts.act, parts.down, x, pattern)


def _attention(block: Block, parts: LayerParts, x: Pair, head: int | None) -> Attention:
    projections = (parts.query, parts.key, parts.value)
    return Attention(projections, parts.projection, parts.heads, block.model.family.causal(block.model.config), x, head)


def _layer(block: Block, parts: LayerParts, x: Pair, pattern: torch.Tensor | None) -> Map:
    """x + attention and then + MLP, each read through its norm, or each sum through its own."""
    pieces: list[Map] = []
    norms = block.model.family.sum_norms(parts.layer, block.model.config)
    for norm, piece, after in (
        (parts.attn_norm, lambda h: _attention(block, parts, h, None), norms[0]),
        (parts.mlp_norm, lambda h: _mlp(parts, h, pattern), norms[1]),
    ):
        pieces.append(Residual(_read_through(norm, x, piece), x))
        if after is not None:
            pieces.append(Norm(after, pieces[-1].y))
        x = pieces[-1].y
    return Chain(*pieces)


def _patterns(block: Block) -> tuple[torch.Tensor | None, ...]:
    """The active units of each MLP inside, as the run has them; None where units are not on or off."""
    if not block.has_relu_units:
        return block.pattern or (None,) * len(block.layers)
    return tuple((call.y > 0).reshape(block.tokens, -1) for call in block.unit_calls())


def _attentions(piece: Map) -> Iterator[Attention]:
    if isinstance(piece, Attention):
        yield piece
    elif isinstance(piece, Residual):
        yield from _attentions(piece.inner)
    elif isinstance(piece, Chain):
        for part in piece.maps:
            yield from _attentions(part)
