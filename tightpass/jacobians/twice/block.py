"""A block at its x in twice float64's precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from tightpass.jacobians.probe import ratio
from tightpass.jacobians.twice.maps import MLP, Attention, Chain, Linear, Map, Norm, Residual
from tightpass.jacobians.twice.pair import Pair, of, perturbed
from tightpass.jacobians.unknown import NoClosedFormError
from tightpass.models.blocks import Block, depth_of, width_of
from tightpass.models.parts import LayerParts
from tightpass.models.shape import Shape
from tightpass.work import Work, passing

ELEMENTS = 2**21
"""Entries of the widest intermediate of a product: as many columns at once as that allows."""
DRAWS = 3
"""Perturbed computations that the rounding of the products is measured by: that all three happen to show less than a
rounding, which is 2⁸ times smaller than what they are perturbed by, is out of the question."""
FEW = 128
"""Up to as many columns the perturbed products are formed whole; beyond, one random vector stands for them."""
AGREE = {torch.float64: 1e-6, torch.float32: 1e-2}
"""How far the block's own value may be from that of the formulas, relative to it, before they are taken for another function."""


@dataclass(frozen=True)
class TwiceCost:
    """What `Twice` takes, from shapes alone.

    made       of its weights in slices, and its pieces
    perturbed  of the measurement of its own rounding: the pieces once more, with as much noise
    column     bytes of a product for each of `at_once` columns
    """

    made: Work
    perturbed: Work
    column: int
    at_once: int

    def product(self, columns: int) -> Work:
        return passing(min(columns, self.at_once) * self.column)


def cost_of(kind: str, tokens: int, shape: Shape, itemsize: int, stored: int = 53) -> TwiceCost:
    """Of a block of some kind, its weights in numbers of a size, of which so many binary digits were stored."""
    d, layer, digits = shape.width, shape.widest, min(stored, {4: 24, 8: 53}[itemsize])
    count = 1 if kind == "head" else layer.heads
    attention = Attention.numbers(tokens, d, layer.heads, layer.d_head, count, digits)
    mlp = MLP.numbers(tokens, d, layer.d_ff, digits)
    inside = {"mlp": [mlp], "attn": [attention], "head": [attention]}.get(kind, [attention, mlp])
    depth, numbers = depth_of(shape, kind), torch.float64.itemsize
    held, pieces = (numbers * depth * sum(getattr(part, name) for part in inside) for name in ("held", "pieces"))
    making, column = (numbers * max(getattr(part, name) for part in inside) for name in ("making", "column"))
    heads = 0 if kind == "mlp" else layer.heads
    return TwiceCost(
        made=Work(0.0, held + pieces + making, held + pieces),
        perturbed=passing(pieces + max(making, column)),
        column=column,
        at_once=columns_at_once(tokens, width_of(shape, kind, tokens), heads),
    )


def columns_at_once(tokens: int, width: int, heads: int) -> int:
    return max(1, ELEMENTS // (tokens * max(width, heads * tokens)))


class Twice:
    """J·X and Jᵀ·Y of a block for X (k, T, d) in twice float64's precision; `saturated` softmax rows inside."""

    def __init__(self, block: Block) -> None:
        self.formulas = _Formulas(block)
        self.map = self.formulas.map()
        self.saturated = sum(attention.saturated for attention in self.map.attentions)
        heads = max((a.count for a in self.map.attentions), default=0)
        self.at_once = columns_at_once(block.tokens, block.width, heads)

    def push(self, tangents: Pair) -> Pair:
        return self._in_parts(self.map.push, tangents)

    def pull(self, cotangents: Pair) -> Pair:
        return self._in_parts(self.map.pull, cotangents)

    @cached_property
    def rounding(self) -> float:
        """What these products themselves may be off by, as ‖·‖₂: how far they move where every operation, from the weights
        on, is perturbed by more than it is rounded."""
        x = self.formulas.block.x
        probes = of(_probes(x))
        plain = self.push(probes)
        moved = []
        for seed in range(DRAWS):
            with torch.no_grad(), perturbed(seed):
                shaken = self._in_parts(self.formulas.map().push, probes)
            moved.append(_size((shaken - plain).rounded()))
        return max(moved)

    def _in_parts(self, product: Callable[[Pair], Pair], columns: Pair) -> Pair:
        count = columns.shape[0]
        parts = [product(columns[start : start + self.at_once]) for start in range(0, count, self.at_once)]
        return Pair(torch.cat([part.hi for part in parts]), torch.cat([part.lo for part in parts]))


def _probes(x: torch.Tensor) -> torch.Tensor:
    """All unit tangents (N, T, d) of few, else one of Gaussian numbers, (1, T, d)."""
    if x.numel() <= FEW:
        return torch.eye(x.numel(), dtype=torch.float64, device=x.device).view(-1, *x.shape)
    generator = torch.Generator().manual_seed(5)
    return torch.randn(1, *x.shape, generator=generator, dtype=torch.float64).to(x.device)


def _size(moved: torch.Tensor) -> float:
    """‖·‖₂ of a matrix from its columns, (k, T, d); of a Gaussian vector's image, whose mean square is ‖·‖_F²."""
    largest = float(moved.abs().max())
    if not 0 < largest < torch.inf:
        return largest
    return largest * float(torch.linalg.matrix_norm((moved / largest).flatten(1), 2))


def twice(block: Block) -> Twice | None:
    """None where the block's family, or a piece of it, is not what the formulas know, or it computes something else than they say.

    A float32 block whose own value is far off may have left float32's range inside: float64 tells that from another function.
    """
    if not block.has_formulas:
        return None
    with torch.no_grad():
        try:
            found = Twice(block)
        except NoClosedFormError:
            return None
        y = found.map.y.rounded()
        if _computes(block, y) or (block.x.dtype == torch.float32 and _computes(block.in_precision(torch.float64), y)):
            return found
        return None


def _computes(block: Block, y: torch.Tensor) -> bool:
    apart = float((block(block.x).double() - y).norm())
    return ratio(apart, float(y.norm())) <= AGREE[block.x.dtype]


class _Formulas:
    """The pieces of a block; its weights are cut into slices once, however often they are put together."""

    def __init__(self, block: Block) -> None:
        self.block, self.patterns = block, _patterns(block)
        self.linears: dict[tuple[nn.Module, int | None], Linear] = {}

    def map(self) -> Map:
        """Raises NoClosedFormError for a piece without formulas."""
        block = self.block
        x, kind = of(block.x), block.kind
        if kind in ("layer", "model"):
            pieces: list[Map] = []
            for parts, pattern in zip(block.layers, self.patterns, strict=True):
                pieces.append(self._layer(parts, x, pattern))
                x = pieces[-1].y
            if block.final_norm is not None:
                pieces.append(Norm(block.final_norm, x))
            return Chain(*pieces)
        parts = block.layers[0]
        norm = parts.mlp_norm if kind == "mlp" else parts.attn_norm
        inner = _read_through(
            norm if block.options.norm else None,
            x,
            lambda h: self._mlp(parts, h, self.patterns[0]) if kind == "mlp" else self._attention(parts, h),
        )
        return Residual(inner, x) if block.options.residual else inner

    def _mlp(self, parts: LayerParts, x: Pair, pattern: torch.Tensor | None) -> MLP:
        up, act, down = parts.plain_mlp
        return MLP(self._linear(up), act, self._linear(down), x, pattern)

    def _attention(self, parts: LayerParts, x: Pair) -> Attention:
        head = self.block.options.head
        weights = [self._linear(module) for module in (parts.query, parts.key, parts.value) if module is not None]
        causal = self.block.model.shape.causal
        return Attention(weights, self._linear(parts.projection, head, parts.d_head), parts.heads, causal, x, head)

    def _layer(self, parts: LayerParts, x: Pair, pattern: torch.Tensor | None) -> Map:
        """x + attention and then + MLP, each read through its norm, or each sum through its own."""
        pieces: list[Map] = []
        for norm, piece, after in (
            (parts.attn_norm, lambda h: self._attention(parts, h), parts.after_attn),
            (parts.mlp_norm, lambda h: self._mlp(parts, h, pattern), parts.after_mlp),
        ):
            pieces.append(Residual(_read_through(norm, x, piece), x))
            if after is not None:
                pieces.append(Norm(after, pieces[-1].y))
            x = pieces[-1].y
        return Chain(*pieces)

    def _linear(self, module: nn.Module, head: int | None = None, width: int = 0) -> Linear:
        """A linear layer; of one that reads all heads, what it makes of one."""
        if (module, head) not in self.linears:
            inputs = slice(None) if head is None else slice(head * width, (head + 1) * width)
            self.linears[module, head] = Linear(module, inputs)
        return self.linears[module, head]


def _read_through(norm: nn.Module | None, x: Pair, piece: Callable[[Pair], Map]) -> Map:
    if norm is None:
        return piece(x)
    normed = Norm(norm, x)
    return Chain(normed, piece(normed.y))


def _patterns(block: Block) -> tuple[torch.Tensor | None, ...]:
    """The active units of each MLP inside, as the run has them; None where units are not on or off."""
    if not block.has_relu_units:
        return block.pattern or (None,) * len(block.layers)
    return tuple((call.y > 0).reshape(block.tokens, -1) for call in block.unit_calls())
