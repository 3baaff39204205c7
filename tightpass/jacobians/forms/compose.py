"""Forms made of forms: the identity, sums and chains, so that layers and models have products in closed form.

A layer with pre-norms is (I + J_mlp)·(I + J_attn), one with post-norms N₂·(I + J_mlp)·N₁·(I + J_attn). Written blocks of an
output token go the other way: what comes last and acts on each token alone is multiplied out first, the attention before it
takes that into its output matrix, and only what comes before that is pulled through all earlier tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from itertools import groupby

import torch

from tightpass.jacobians.forms.base import Cost, Piece, in_parts
from tightpass.jacobians.forms.norm import sum_of
from tightpass.structure import BlockDiagonal, BlockLowerTriangular, Dense, Panel, Structure

BETWEEN = 2
"""Times as many columns between pieces as pass through one of them at once."""
WIDER = (BlockDiagonal(), BlockLowerTriangular(), Dense())


def widest(pieces: tuple[Piece, ...]) -> Structure:
    """The structure of their sum, and of their product."""
    return max((piece.structure for piece in pieces), key=WIDER.index)


class Identity(Piece):
    """x itself."""

    def __init__(self, like: torch.Tensor) -> None:
        self.like, self.structure = like, BlockDiagonal()
        self.tokens, self.d_in = like.shape
        self.tokens_in = self.tokens_out = self.tokens
        self.d_out = self.d_in

    @property
    def width(self) -> int:
        return self.d_in

    @property
    def cost(self) -> Cost:
        size = self.tokens * self.d_in
        return Cost(0.0, 0.0, 0, working=size, widest=size, panel=self.d_in**2)

    def push(self, tangents: torch.Tensor) -> torch.Tensor:
        return tangents.clone()

    def pull(self, cotangents: torch.Tensor) -> torch.Tensor:
        return cotangents.clone()

    def row(self, t: int, left: torch.Tensor | None = None) -> torch.Tensor:
        if left is not None:
            return left[None].clone()
        return torch.eye(self.d_in, dtype=self.like.dtype, device=self.like.device)[None]

    def energy(self) -> float:
        return float(self.tokens * self.d_in)


class _Composed(Piece):
    """Of pieces that act on as many tokens."""

    def __init__(self, *pieces: Piece) -> None:
        self.pieces, self.structure, self.tokens = pieces, widest(pieces), pieces[0].tokens
        self.tokens_in = self.tokens_out = self.tokens
        self.d_out, self.d_in = pieces[-1].d_out, pieces[0].d_in

    @property
    def width(self) -> int:
        return max(max(piece.d_in, piece.d_out) for piece in self.pieces)

    def at_once(self, itemsize: int, memory: int | None) -> int:
        """As many as fit between the pieces, each of which takes fewer where it is wider inside."""
        return BETWEEN * super().at_once(itemsize, memory)

    def columns(self, t: int) -> range:
        """The input tokens of output token t."""
        return self.structure.row(t, self.tokens)


class Sum(_Composed):
    """f + g + .., all of the same x."""

    @property
    def cost(self) -> Cost:
        return summed(self.pieces)

    def push(self, tangents: torch.Tensor) -> torch.Tensor:
        return sum_of(pushed(piece, tangents) for piece in self.pieces)

    def pull(self, cotangents: torch.Tensor) -> torch.Tensor:
        return sum_of(pulled(piece, cotangents) for piece in self.pieces)

    def row(self, t: int, left: torch.Tensor | None = None) -> torch.Tensor:
        mine = self.columns(t)
        parts = [(piece.structure.row(t, self.tokens), piece.row(t, left)) for piece in self.pieces]
        parts.sort(key=lambda part: -len(part[0]))
        out = parts[0][1]  # as wide as the sum
        for columns, blocks in parts[1:]:
            out[columns.start - mine.start : columns.stop - mine.start] += blocks
        return out


class Chain(_Composed):
    """One piece after the other, the first of x."""

    @property
    def cost(self) -> Cost:
        """Blocks: each piece's own, and what comes before the last piece that mixes tokens, pulled for each row."""
        mixing = [i for i, piece in enumerate(self.pieces) if not isinstance(piece.structure, BlockDiagonal)]
        before = sum(piece.cost.product for piece in self.pieces[: mixing[-1]]) if mixing else 0.0
        seen = self.structure.count(self.tokens, self.tokens) / self.tokens**2
        each, formed = summed(self.pieces), summed(self.pieces[mixing[-1] :] if mixing else self.pieces)
        return replace(each, blocks=formed.blocks + self.d_out * self.tokens * seen * before)

    def push(self, tangents: torch.Tensor) -> torch.Tensor:
        return reduce(lambda at, piece: pushed(piece, at), self.pieces, tangents)

    def pull(self, cotangents: torch.Tensor) -> torch.Tensor:
        return reduce(lambda at, piece: pulled(piece, at), reversed(self.pieces), cotangents)

    def row(self, t: int, left: torch.Tensor | None = None) -> torch.Tensor:
        *before, last = self.pieces
        if left is None and len(before) == 1 and last.entrywise:
            return last.after(t, before[0].row(t))
        rows = last.row(t, left)
        while before and isinstance(last.structure, BlockDiagonal):
            last = before.pop()
            rows = last.row(t, rows[0])
        return self._pulled(before, self._spread(rows, t)) if before else rows

    def panels(self, rows: range) -> Iterator[Panel]:
        *before, last = self.pieces
        if len(before) != 1 or not last.entrywise:
            yield from super().panels(rows)
            return
        for panel in before[0].panels(rows):
            start = 0
            for t, some in groupby(panel.rows):
                stop = start + len(list(some))
                last.after(t, panel.blocks[start:stop])
                start = stop
            yield panel

    def _spread(self, rows: torch.Tensor, t: int) -> torch.Tensor:
        """Zeros for the tokens that only earlier pieces read."""
        return torch.nn.functional.pad(rows, (0, 0, 0, 0, 0, len(self.columns(t)) - len(rows)))

    def _pulled(self, before: list[Piece], rows: torch.Tensor) -> torch.Tensor:
        """Through the pieces before, as many of the m rows (n, m, d) at once as a product carries."""
        m, step = rows.shape[1], self.at_once(rows.itemsize, None)
        out = rows if rows.shape[2] == self.d_in else rows.new_empty(*rows.shape[:2], self.d_in)
        for start in range(0, m, step):
            part = rows[:, start : start + step].transpose(0, 1)
            out[:, start : start + step] = Chain(*before).pull(part).transpose(0, 1)
        return out


def pushed(piece: Piece, tangents: torch.Tensor) -> torch.Tensor:
    return in_parts(piece.push, tangents, piece.at_once(tangents.itemsize, None))


def pulled(piece: Piece, cotangents: torch.Tensor) -> torch.Tensor:
    return in_parts(piece.pull, cotangents, piece.at_once(cotangents.itemsize, None))


def cost_of_layers(attention: Cost, mlp: Cost, depth: int, pulled: float) -> Cost:
    """Of so many layers in a row; `pulled` rows of J, counted as whole cotangents, go back through all but the last."""
    both = together([attention, mlp])
    return replace(
        both,
        product=depth * both.product,
        blocks=both.blocks + pulled * (depth - 1) * both.product,
        kept=depth * both.kept,
    )


def summed(pieces: tuple[Piece, ...]) -> Cost:
    return together([piece.cost for piece in pieces])


def together(costs: list[Cost]) -> Cost:
    """Of pieces that are held together and used one after the other. A panel is a row of blocks: of all tokens, where one of
    them mixes; as it is written, the attention's output matrix takes in what comes after, and so do its pieces."""
    row = max(cost.panel for cost in costs)
    return Cost(
        product=sum(cost.product for cost in costs),
        blocks=sum(cost.blocks for cost in costs),
        kept=sum(cost.kept for cost in costs),
        working=max(cost.working for cost in costs),
        widest=max(cost.widest for cost in costs),
        panel=row,
        writing=row + max(cost.writing for cost in costs),
    )
