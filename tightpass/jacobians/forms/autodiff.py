"""The form of any function: products by automatic differentiation, blocks by pulling back unit cotangents."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.utils.flop_counter import FlopCounterMode

from tightpass.jacobians.autodiff import ARENA_BYTES, Linearisation, chunk_size
from tightpass.jacobians.forms.base import PANEL_ELEMENTS, Cost, Form, groups, panel_of, room
from tightpass.models.blocks import depth_of, width_of
from tightpass.models.shape import Shape
from tightpass.structure import BlockDiagonal, Panel, Structure

INTERMEDIATES = 6
"""Arrays of a product that live at once, in units of the widest."""


def product_bytes(columns: int, per_column: int) -> int:
    """The intermediates of a product with so many columns, whose widest has so many bytes for each."""
    return INTERMEDIATES * min(columns, chunk_size(per_column, None)) * per_column


def cost_of(kind: str, tokens: int, shape: Shape, itemsize: int) -> Cost:
    """Of a block of some kind, from shapes alone."""
    width, d = width_of(shape, kind, tokens), shape.width
    return cost(flops_of(kind, tokens, shape), tokens, (d, d), width, itemsize, kind == "mlp")


def flops_of(kind: str, tokens: int, shape: Shape) -> float:
    """Of one evaluation: its matrix products."""
    layer = shape.widest
    projections, inner = 2 * shape.width * (layer.heads + layer.kv_heads) * layer.d_head, layer.heads * layer.d_head
    attention = 2.0 * tokens * projections + 4.0 * tokens**2 * inner
    mlp = 2.0 * tokens * (layer.parameters - projections)
    whole = depth_of(shape, kind) * (attention + mlp)
    return {"mlp": mlp, "attn": attention, "head": attention}.get(kind, whole)


def cost(
    flops: float, tokens: int, block: tuple[int, int], width: int, itemsize: int, diagonal: bool, apart: bool = True
) -> Cost:
    """Of a function whose evaluation takes so many FLOPs.

    block      d_out and d_in
    width      elements of its widest intermediate, per token
    diagonal   whether each token acts on itself alone; `apart`: whether it can be evaluated for some tokens alone
    """
    (d_out, d_in), widest = block, tokens * width
    square, row = d_out * d_in, tokens * d_out * d_in
    group = min(tokens, max(1, PANEL_ELEMENTS // square)) if diagonal and apart else tokens
    pulled = min(d_out, chunk_size(group * width * itemsize, None))  # rows of blocks, at once
    return Cost(
        product=flops,
        blocks=flops * d_out * (1 if diagonal and apart else tokens),
        kept=0,
        working=INTERMEDIATES * widest,
        widest=widest,
        panel=panel_of(tokens, square) if diagonal else row,
        writing=(0 if diagonal else row) + INTERMEDIATES * group * width * pulled,
        arena=ARENA_BYTES,
    )


class Autodiff(Form):
    """A function at its point, and what is claimed of its structure.

    restricted   its linearisation on some tokens alone; None where it cannot be restricted
    """

    closed = structured = False

    def __init__(
        self,
        whole: Linearisation,
        structure: Structure,
        width: int,
        restricted: Callable[[slice], Linearisation] | None = None,
    ) -> None:
        self.whole, self.structure, self._width, self.restricted = whole, structure, width, restricted
        self.tokens_out, self.d_out = whole.y.shape
        self.tokens_in, self.d_in = whole.x.shape

    @property
    def width(self) -> int:
        return self._width

    @property
    def cost(self) -> Cost:
        """As counted in one evaluation of the function: matrix products alone."""
        with torch.no_grad(), FlopCounterMode(display=False) as counted:
            self.whole.fn(self.whole.x)
        flops = float(counted.get_total_flops())
        block, diagonal = (self.d_out, self.d_in), isinstance(self.structure, BlockDiagonal)
        itemsize, apart = self.whole.x.itemsize, self.restricted is not None
        return cost(flops, self.tokens_in, block, self.width, itemsize, diagonal, apart)

    def at_once(self, itemsize: int, memory: int | None) -> int:
        return self.whole.columns

    def route(self, device: str) -> str:
        return "automatic differentiation"

    def push(self, tangents: torch.Tensor) -> torch.Tensor:
        return self.whole.push(tangents)

    def pull(self, cotangents: torch.Tensor) -> torch.Tensor:
        return self.whole.pull(cotangents)

    def panels(self, rows: range) -> Iterator[Panel]:
        """Block-diagonal: groups of tokens; otherwise one output token after the other."""
        if not isinstance(self.structure, BlockDiagonal):
            yield from (self._row(t) for t in rows)
            return
        if self.restricted is None:  # it cannot be done for some of its tokens
            blocks = self._diagonal(self.whole)[rows.start : rows.stop]
            yield Panel(tuple(rows), tuple(rows), blocks)
            return
        for tokens in groups(rows, self.d_out * self.d_in):
            part = self.restricted(slice(tokens.start, tokens.stop))
            yield Panel(tuple(tokens), tuple(tokens), self._diagonal(part))

    def _diagonal(self, part: Linearisation) -> torch.Tensor:
        """Blocks (t, t) of a group of tokens: cotangent i is the unit i at every token at once."""
        count = part.x.shape[0]
        out = room((count, self.d_out, self.d_in), part.x)
        for start in range(0, self.d_out, part.columns):
            rows = slice(start, min(start + part.columns, self.d_out))
            units = part.x.new_zeros(rows.stop - rows.start, 1, self.d_out)
            units[range(rows.stop - rows.start), 0, range(rows.start, rows.stop)] = 1
            pulled = part.pull(units.repeat(1, count, 1))  # contiguous, so that products fold into one GEMM
            out[:, rows] = pulled.transpose(0, 1)
        return out

    def _row(self, t: int) -> Panel:
        columns = self.structure.row(t, self.tokens_in)
        x, step = self.whole.x, self.whole.columns
        out = room((self.d_out, self.tokens_in, self.d_in), x)
        for start in range(0, self.d_out, step):
            rows = range(start, min(start + step, self.d_out))
            units = x.new_zeros(len(rows), self.tokens_out, self.d_out)
            units[range(len(rows)), t, rows] = 1
            out[rows.start : rows.stop] = self.whole.pull(units)
        blocks = out[:, columns.start : columns.stop].transpose(0, 1).contiguous()
        return Panel((t,) * len(columns), tuple(columns), blocks)
