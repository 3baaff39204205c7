"""A block at its x in twice float64's precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import nn

from tightpass.jacobians.probe import ratio
from tightpass.jacobians.twice.attention import Attention, Side
from tightpass.jacobians.twice.maps import MLP, Chain, Linear, Map, Norm, Residual, Scaled
from tightpass.jacobians.twice.pair import Pair, of, perturbed
from tightpass.models.blocks import Block, depth_of, width_of
from tightpass.models.formulas import NoFormulasError, mlp_maps
from tightpass.models.heard import attentions_of
from tightpass.models.linear import Affine
from tightpass.models.norms import kind_of, multiplier_of
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
    """Of a block of some kind, its weights in numbers of a size, of which so many binary digits were stored; nothing of one
    without formulas."""
    if kind not in shape.closed:
        return TwiceCost(made=Work(), perturbed=Work(), column=0, at_once=1)
    d, layer, digits = shape.width, shape.widest, min(stored, {4: 24, 8: 53}[itemsize])
    count = 1 if kind == "head" else layer.heads
    attention = Attention.numbers(tokens, d, layer.heads, layer.d_head, count, digits)
    mlp = MLP.numbers(tokens, d, layer.d_ff, digits, 2 if layer.gated else 1)
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
        self.saturated = self.map.saturated
        heads = 0 if block.kind == "mlp" else max(parts.heads for parts in block.layers)
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
        except NoFormulasError:
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
        self.linears: dict[tuple[int, str], Linear] = {}
        self.attentions = attentions_of(block)

    def map(self) -> Map:
        """Raises NoFormulasError for a piece without formulas."""
        block = self.block
        x = of(block.x)
        if block.kind in ("layer", "model"):
            pieces: list[Map] = []
            for i in range(len(block.layers)):
                pieces += self._layer(i, x)
                x = pieces[-1].y
            if block.final_norm is not None:
                pieces.append(self._norm(block.final_norm, x))
            return Chain(*pieces)
        make = self._mlp_branch if block.kind == "mlp" else self._attention_branch
        inner = make(0, x, block.options.norm)
        return Residual(x, inner) if block.options.residual else inner

    def _attention_branch(self, i: int, x: Pair, norm: bool = True) -> Map:
        parts = self.block.layers[i]
        added = norm and self.block.kind != "head"
        return self._branch(
            parts.attn_norm, parts.attn_post, parts.scale, x, (norm, added), partial(self._attention, i)
        )

    def _mlp_branch(self, i: int, x: Pair, norm: bool = True) -> Map:
        parts = self.block.layers[i]
        return self._branch(parts.mlp_norm, parts.mlp_post, parts.scale, x, (norm, norm), partial(self._mlp, i))

    def _branch(
        self,
        before: nn.Module | None,
        post: nn.Module | None,
        scale: float,
        x: Pair,
        which: tuple[bool, bool],
        piece: Callable[[Pair], Map],
    ) -> Map:
        """Through its pre-norm, and, as it is added to the residual stream, its post-norm and multiplier: which of both, if asked."""
        pieces: list[Map] = []
        if which[0] and before is not None and type(before) is not nn.Identity:
            pieces.append(self._norm(before, x))
        pieces.append(piece(pieces[-1].y if pieces else x))
        multiplier = None if post is None or not which[1] else multiplier_of(post, self.block.x)
        if which[1] and post is not None and multiplier is None:
            pieces.append(self._norm(post, pieces[-1].y))
        whole = pieces[0] if len(pieces) == 1 else Chain(*pieces)
        if multiplier is not None:
            whole = Scaled(whole, multiplier.double())
        return whole if scale == 1 or not which[1] else Scaled(whole, scale)

    def _layer(self, i: int, x: Pair) -> list[Map]:
        """x + attention and then + MLP, or both at x, each read through its norm, or each sum through its own."""
        parts = self.block.layers[i]
        if parts.parallel:
            return [Residual(x, self._attention_branch(i, x), self._mlp_branch(i, x))]
        pieces: list[Map] = []
        for branch, after in ((self._attention_branch, parts.after_attn), (self._mlp_branch, parts.after_mlp)):
            pieces.append(Residual(x, branch(i, x)))
            if after is not None:
                pieces.append(self._norm(after, pieces[-1].y))
            x = pieces[-1].y
        return pieces

    def _norm(self, module: nn.Module, x: Pair) -> Norm:
        kind = kind_of(module, x.shape[-1], self.block.x)
        if kind is None:
            raise NoFormulasError(f"no formulas for {type(module).__name__}")
        return Norm(kind, x)

    def _mlp(self, i: int, x: Pair) -> MLP:
        maps = mlp_maps(self.block.layers[i])
        firsts = [self._linear(i, f"first {n}", first) for n, first in enumerate(maps.firsts)]
        return MLP(firsts, maps.act, self._linear(i, "down", maps.down), x, self.patterns[i])

    def _attention(self, i: int, x: Pair) -> Attention:
        parts, head, heard = self.block.layers[i], self.block.options.head, self.attentions[i]
        maps, turn = heard.maps, heard.how.rotation
        sizes, chosen = (parts.heads, parts.d_head), slice(None) if head is None else slice(head, head + 1)
        # what all keys, or all values, have in common cancels in J: without it less is rounded
        sides = [
            Side(self._linear(i, name, map_), norm, turns, sizes, chosen, x, biased)
            for name, map_, norm, turns, biased in (
                ("query", maps.query, maps.query_norm, turn, True),
                ("key", maps.key, maps.key_norm, turn, not heard.plain_keys),
                ("value", maps.value, None, None, not heard.sums_to_one),
            )
        ]
        bias = maps.value.bias if heard.sums_to_one else None
        if bias is not None:
            bias = bias.view(-1, parts.d_head).repeat_interleave(sides[2].shared, 0)[chosen].flatten()
        inputs = slice(None) if head is None else slice(head * parts.d_head, (head + 1) * parts.d_head)
        output = self._linear(i, "output", maps.output, inputs)
        causal = self.block.model.shape.causal
        return Attention(sides, output, heard.how.scale, heard.given, causal, bias, head is None)

    def _linear(self, i: int, name: str, map_: Affine, inputs: slice = slice(None)) -> Linear:
        """A linear map of a layer; of one that reads all heads, what it makes of one."""
        if (i, name) not in self.linears:
            self.linears[i, name] = Linear(map_, inputs)
        return self.linears[i, name]


def _patterns(block: Block) -> tuple[torch.Tensor | None, ...]:
    """The active units of each MLP inside, as the run has them; None where units are not on or off."""
    if not block.has_relu_units:
        return block.pattern or (None,) * len(block.layers)
    return tuple((call.y > 0).reshape(block.tokens, -1) for call in block.unit_calls())
