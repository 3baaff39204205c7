"""The MLP's Jacobian in closed form: one block a token, J_t = W2·diag(act′)·W1·dN.

Only units with a non-zero slope count. With fewer of them than the width, J_t = Cᵀ·B has the two
factors' rank, and its singular values are those of a small core: structural zeros are exact.
A gated MLP, W2·(act(g)∘u), is the sum of two such products with slopes act′(g)∘u and act(g).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from tightpass.jacobians.forms.base import Cost, Piece, groups, in_parts, panel_of, room
from tightpass.jacobians.forms.norm import NormAt, sum_of
from tightpass.jacobians.forms.products import through
from tightpass.kernels.rows import gather_rows
from tightpass.structure import BlockDiagonal, Panel

GATHERED = 32
"""Columns whose products with a row of the weights take as long as to copy the row from among others (measured: 27)."""
AT_ONCE = 4
"""Times as many columns by units as `PRODUCT_BYTES` allow between two maps: nothing of that size is made in between."""
UNITS = 256
"""Rows of the weights at once: they stay in the cache between their copy and their use."""


@dataclass(frozen=True)
class Branch:
    """One first matrix W1 (d_ff, d), folded with the norm, and each token's slopes (T, d_ff)."""

    weight: torch.Tensor
    slope: torch.Tensor


def slope_of(act: Callable[[torch.Tensor], torch.Tensor], z: torch.Tensor) -> torch.Tensor:
    """act′(z) of an elementwise activation."""
    slope: torch.Tensor = torch.func.grad(lambda at: act(at).sum())(z)
    return slope


def cost(tokens: int, d: int, d_ff: int, branches: int = 1) -> Cost:
    """Of an MLP between activations of width d, all units active."""
    return Cost(
        product=2.0 * tokens * d * d_ff * (1 + branches),
        blocks=2.0 * tokens * d * d * d_ff,
        kept=(1 + 2 * branches) * d * d_ff + (1 + branches) * tokens * d_ff,  # W2ᵀ, W1 and W1ᵀ; slopes, active units
        working=tokens * ((1 + branches) * d_ff + 3 * d),
        widest=tokens * max(d, d_ff),
        panel=panel_of(tokens, d * d),
        writing=(1 + branches) * d * d_ff,  # a token's factors
        norm=4 * d_ff**2 + 2 * d * d_ff,  # the Gram matrices of the weights, and their product
    )


class ClosedMLP(Piece):
    """Σ_branches W2·diag(slope_t)·W1·dN_t for every token t, and the identity where `residual`.

    down       W2 (d_out, d_ff)
    branches   one, or two for a gated MLP
    """

    def __init__(
        self, down: torch.Tensor, branches: Sequence[Branch], norm: NormAt | None, residual: bool = False
    ) -> None:
        self.down, self.branches, self.norm, self.residual = down, tuple(branches), norm, residual
        self.d_out, self.d_in = down.shape[0], branches[0].weight.shape[1]
        self.tokens = self.tokens_in = self.tokens_out = branches[0].slope.shape[0]
        self.structure = BlockDiagonal()

    @property
    def width(self) -> int:
        """Elements of the widest intermediate of a product, per token and column."""
        return max(self.down.shape)

    @property
    def cost(self) -> Cost:
        return cost(self.tokens, self.d_out, self.down.shape[1], len(self.branches))

    @cached_property
    def _down_rows(self) -> torch.Tensor:
        """W2ᵀ (d_ff, d_out), so that a unit's column is contiguous."""
        return self.down.T.contiguous()

    @cached_property
    def _up_columns(self) -> list[torch.Tensor]:
        """W1ᵀ (d_in, d_ff) of each branch."""
        return [branch.weight.T.contiguous() for branch in self.branches]

    @cached_property
    def active(self) -> tuple[torch.Tensor, ...]:
        """Indices of the units that matter, token by token."""
        used = torch.stack([branch.slope != 0 for branch in self.branches]).any(0)
        return tuple(row.nonzero()[:, 0] for row in used)

    def factors(self, t: int, threads: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """C (n, d_out) and B (n, d_in) with J_t = Cᵀ·B, n the active units of token t; without the residual."""
        index = self.active[t]
        return self._columns(index, threads), self._rows(t, index, threads)

    def thin_factors(self, t: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The factors where fewer units than the width are active, and no identity hides them."""
        if self.residual or len(self.active[t]) >= min(self.d_out, self.d_in):
            return None
        return self.factors(t, threads=1)

    def _columns(self, index: torch.Tensor, threads: int | None = None) -> torch.Tensor:
        if len(index) == self.down.shape[1]:
            return self._down_rows
        out = room((len(index), self.d_out), self.down)
        return gather_rows(self._down_rows, index, None, out, threads=threads)  # type: ignore[no-any-return]

    def _rows(self, t: int, index: torch.Tensor, threads: int | None = None) -> torch.Tensor:
        token = None if self.norm is None else torch.full_like(index, t)
        norm = None if self.norm is None else self.norm.pair
        parts = []
        for branch in self.branches:
            rows = room((len(index), self.d_in), self.down)
            parts.append(gather_rows(branch.weight, index, branch.slope[t][index], rows, token, norm, threads=threads))
        return sum_of(parts)

    def row(self, t: int, left: torch.Tensor | None = None) -> torch.Tensor:
        if left is None:
            return self.blocks(range(t, t + 1))
        C, B = self.factors(t)
        out = torch.mm(left @ C.T, B)
        return (out.add_(left) if self.residual else out)[None]

    def panels(self, rows: range) -> Iterator[Panel]:
        """Groups of tokens."""
        for tokens in groups(rows, self.d_out * self.d_in):
            yield Panel(tuple(tokens), tuple(tokens), self.blocks(tokens))

    def blocks(self, tokens: range, out: torch.Tensor | None = None) -> torch.Tensor:
        """Blocks (t, t) of some tokens, (len(tokens), d_out, d_in)."""
        if out is None:
            out = room((len(tokens), self.d_out, self.d_in), self.down)
        for t, block in zip(tokens, out, strict=True):
            C, B = self.factors(t)
            torch.mm(C.T, B, out=block)
            if self.residual:
                block.diagonal().add_(1)
        return out

    def push(self, tangents: torch.Tensor) -> torch.Tensor:
        """J on (k, T, d_in) tangents -> (k, T, d_out)."""
        at = (tangents if self.norm is None else self.norm.push(tangents)).transpose(0, 1)
        hidden = sum_of(
            [through(at, W).mul_(self._slope(b, len(at))) for W, b in zip(self._up_columns, self.branches, strict=True)]
        )
        out = through(hidden, self._down_rows).transpose(0, 1)
        return out.add_(tangents) if self.residual else out

    def _slope(self, branch: Branch, tokens: int) -> torch.Tensor:
        """Of the first tokens, beside (tokens, k, d_ff)."""
        return branch.slope[:tokens, None]

    def pull(self, cotangents: torch.Tensor) -> torch.Tensor:
        """Jᵀ on (k, T, d_out) cotangents -> (k, T, d_in)."""
        hidden = through(cotangents.transpose(0, 1), self.down)
        slopes = [self._slope(branch, len(hidden)) for branch in self.branches]
        at = sum_of(
            [through(hidden * slope, branch.weight) for slope, branch in zip(slopes, self.branches, strict=True)]
        ).transpose(0, 1)
        out = at if self.norm is None else self.norm.push(at)
        return out.add_(cotangents) if self.residual else out

    def energy_reach(self) -> float:
        """What ‖J‖_F² is made of before anything cancels: its rounding is relative to this."""
        G = (self.down.double().T @ self.down.double()).abs().cpu()
        reach = torch.zeros(self.tokens, dtype=torch.float64)
        slopes = [branch.slope.double().abs().cpu() for branch in self.branches]
        weights = [branch.weight.double().cpu() for branch in self.branches]
        for slope, weight in zip(slopes, weights, strict=True):
            for other_slope, other in zip(slopes, weights, strict=True):
                reach += ((slope @ (G * (weight @ other.T).abs())) * other_slope).sum(-1)
        if self.norm is not None:  # as much again, and as much once more, is subtracted
            reach = 3 * self.norm.r.double().cpu().square() * reach
        return 2 * (float(reach.sum()) + self.tokens * self.d_in) if self.residual else float(reach.sum())

    def energy(self) -> float:
        """‖J‖_F², from Gram matrices of the weights, without J (float64 sums)."""
        G = (self.down.double().T @ self.down.double()).cpu()
        slopes = [branch.slope.double().cpu() for branch in self.branches]
        weights = [branch.weight.double().cpu() for branch in self.branches]
        total = torch.zeros(self.tokens, dtype=torch.float64)
        for slope, weight in zip(slopes, weights, strict=True):
            for other_slope, other in zip(slopes, weights, strict=True):
                total += ((slope @ (G * (weight @ other.T))) * other_slope).sum(-1)
        trace = torch.zeros_like(total)
        if self.residual:
            for slope, weight in zip(slopes, weights, strict=True):
                trace += slope @ (self.down.double().cpu().T * weight).sum(-1)
        if self.norm is not None:
            xhat, r = self.norm.xhat.double().cpu(), self.norm.r.double().cpu()
            through = sum_of([slope * (xhat @ weight.T) for slope, weight in zip(slopes, weights, strict=True)])
            total = r.square() * (total - self.norm.squared_shrink().double().cpu() * ((through @ G) * through).sum(-1))
            if self.residual:
                trace = r * (trace - ((through @ self.down.double().cpu().T) * xhat).sum(-1) / self.d_in)
        return float((total + 2 * trace).sum()) + (self.tokens * self.d_in if self.residual else 0)


class ActiveMLP(ClosedMLP):
    """The same, whose products go through the active units of each token alone where that is less work."""

    @cached_property
    def share(self) -> float:
        """Of the units that are active, over all tokens."""
        return sum(len(index) for index in self.active) / (self.tokens * self.down.shape[1])

    def _by_units(self, columns: int) -> bool:
        """Whether to gather each token's rows of the weights: each costs as much as `GATHERED` columns' products with it."""
        return self.share * (columns + GATHERED) < columns

    def at_once(self, itemsize: int, memory: int | None) -> int:
        """By units nothing is wider than what comes in and goes out, and the more columns the better."""
        columns = super().at_once(itemsize, memory)
        many = AT_ONCE * columns * self.width // max(self.d_in, self.d_out)
        return many if self._by_units(many) else columns

    def push(self, tangents: torch.Tensor) -> torch.Tensor:
        if not self._by_units(len(tangents)):
            return in_parts(super().push, tangents, super().at_once(tangents.itemsize, None))
        at = tangents if self.norm is None else self.norm.push(tangents)
        out = self._through_units(at, [branch.weight for branch in self.branches], self._down_rows)
        return out.add_(tangents) if self.residual else out

    def pull(self, cotangents: torch.Tensor) -> torch.Tensor:
        if not self._by_units(len(cotangents)):
            return in_parts(super().pull, cotangents, super().at_once(cotangents.itemsize, None))
        at = sum_of(
            self._through_units(cotangents, [self._down_rows], branch.weight, branch.slope) for branch in self.branches
        )
        out = at if self.norm is None else self.norm.push(at)
        return out.add_(cotangents) if self.residual else out

    def _through_units(
        self, at: torch.Tensor, read: list[torch.Tensor], written: torch.Tensor, slope: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Σ_units written[u]·slope_u·(read[u]·at_t) of the active units of each token; slopes are those of the branches, or
        one that is given. (k, n, d) -> (k, n, ·), some units at a time: their rows stay in the cache."""
        k, n, _ = at.shape
        slopes = [branch.slope for branch in self.branches] if slope is None else [slope]
        out = at.new_zeros(n, k, written.shape[1])
        rows = at.new_empty(UNITS, max(written.shape[1], at.shape[2]))
        for t in range(n):
            columns = at[:, t].T.contiguous()
            for units in self.active[t].split(UNITS):
                hidden = sum_of(
                    (taken(R, units, rows) @ columns).mul_(slope[t, units, None])
                    for R, slope in zip(read, slopes, strict=True)
                )
                out[t].addmm_(hidden.T.contiguous(), taken(written, units, rows))
        return out.transpose(0, 1)


def taken(weight: torch.Tensor, units: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Some rows of a weight, into memory that is there."""
    shape = len(units), weight.shape[1]
    return torch.index_select(weight, 0, units, out=rows.view(-1)[: shape[0] * shape[1]].view(shape))
