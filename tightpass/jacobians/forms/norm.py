"""LayerNorm and RMSNorm at a point: diagonal plus rank one or two, never a d × d matrix.

For a row vector w, w·dN = r·(w' − (w'·x̂)·x̂/d) with w' = w∘γ, less its mean for LayerNorm, x̂ the
normalised input and r = 1/√(var + ε). γ and the mean do not depend on the token, so they are folded into the
weights that follow the norm, once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from tightpass.jacobians.forms.base import Cost, Piece, groups, panel_of
from tightpass.models.formulas import NoFormulasError
from tightpass.models.norms import kind_of
from tightpass.structure import BlockDiagonal, Panel

ROWS = 64
"""Of each block that are scaled at once."""


@dataclass(frozen=True)
class NormAt:
    """A norm at x: γ (d,), x̂ (T, d), r (T,); `centred` tells LayerNorm from RMSNorm."""

    gamma: torch.Tensor | None
    centred: bool
    xhat: torch.Tensor
    r: torch.Tensor

    @property
    def pair(self) -> tuple[torch.Tensor, torch.Tensor]:
        """x̂ and r, as the kernels take them."""
        return self.xhat, self.r

    def fold(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight (..., d) behind the norm, with γ and the centring in it."""
        folded = weight if self.gamma is None else weight * self.gamma
        return folded - folded.mean(-1, keepdim=True) if self.centred else folded.clone()

    def push(self, tangents: torch.Tensor) -> torch.Tensor:
        """(k, n, d) of the first n tokens -> (k, n, d): what reaches the folded weights. The map is its own transpose."""
        n = tangents.shape[1]
        xhat, r = self.xhat[:n], self.r[:n]
        inner = torch.einsum("ktd,td->kt", tangents, xhat) / xhat.shape[-1]
        return torch.addcmul(tangents, inner[..., None], xhat, value=-1).mul_(r[:, None])

    def times(self, factor: float | torch.Tensor) -> NormAt:
        """The norm with its output multiplied, by a number or by one for each feature (d,)."""
        if isinstance(factor, float) and factor == 1:
            return self
        return replace(self, gamma=factor * (torch.ones_like(self.xhat[0]) if self.gamma is None else self.gamma))

    def squared_shrink(self) -> torch.Tensor:
        """2/d − ‖x̂‖²/d², (T,): ‖w·dN‖² = r²·(‖w'‖² − shrink·(w'·x̂)²)."""
        d = self.xhat.shape[-1]
        return 2 / d - self.xhat.square().sum(-1) / d**2


def sum_of(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum of some fresh arrays, into the first."""
    first, *others = parts
    for part in others:
        first.add_(part)
    return first


def norm_at(module: nn.Module | None, x: torch.Tensor) -> NormAt | None:
    """The norm at x (T, d); None where there is none. Raises NoFormulasError for a module that computes something else than
    a LayerNorm or an RMSNorm."""
    if module is None or type(module) is nn.Identity:
        return None
    kind = kind_of(module, x.shape[-1], x)
    if kind is None:
        raise NoFormulasError(f"no closed form for {type(module).__name__}")
    xhat, r = kind.at(x)
    return NormAt(kind.gamma, kind.centred, xhat.contiguous(), r)


class ClosedNorm(Piece):
    """The Jacobian of a norm by itself, as on a residual sum: dN_t = diag(γ)·C·r_t·(I − x̂x̂ᵀ/d), C the centring."""

    entrywise = True

    def __init__(self, at: NormAt) -> None:
        self.at, self.structure = at, BlockDiagonal()
        self.tokens, self.d_in = at.xhat.shape
        self.tokens_in = self.tokens_out = self.tokens
        self.d_out = self.d_in

    @property
    def width(self) -> int:
        return self.d_in

    @property
    def cost(self) -> Cost:
        size, square = self.tokens * self.d_in, self.d_in**2
        return Cost(
            product=6.0 * size,
            blocks=6.0 * size * self.d_in,
            kept=0,
            working=2 * size,
            widest=size,
            panel=panel_of(self.tokens, square),
            writing=2 * square,
        )

    def push(self, tangents: torch.Tensor) -> torch.Tensor:
        out = self._centred(self.at.push(tangents))
        return out if self.at.gamma is None else out.mul_(self.at.gamma)

    def pull(self, cotangents: torch.Tensor) -> torch.Tensor:
        return self.at.push(self._before(cotangents))

    def _before(self, cotangents: torch.Tensor) -> torch.Tensor:
        """diag(γ)·C, transposed, on (.., d)."""
        return self._centred(cotangents if self.at.gamma is None else cotangents * self.at.gamma)

    def _centred(self, at: torch.Tensor) -> torch.Tensor:
        return at - at.mean(-1, keepdim=True) if self.at.centred else at

    def row(self, t: int, left: torch.Tensor | None = None) -> torch.Tensor:
        xhat, r = self.at.xhat[t], self.at.r[t]
        rows = self._before(torch.eye(self.d_out, dtype=xhat.dtype, device=xhat.device) if left is None else left)
        return torch.addr(rows, rows @ xhat, xhat, alpha=-1 / self.d_in).mul_(r)[None]

    def after(self, t: int, blocks: torch.Tensor) -> torch.Tensor:
        """By the entries of the blocks, in their place, and never as a matrix."""
        xhat, r = self.at.xhat[t], self.at.r[t]
        if self.at.centred:
            blocks -= blocks.mean(1, keepdim=True)
        inner = (xhat @ blocks)[:, None] / self.d_in
        scale = r.expand(self.d_in) if self.at.gamma is None else r * self.at.gamma
        for start in range(0, self.d_in, ROWS):  # they stay in the cache between the two steps
            some = slice(start, start + ROWS)
            blocks[:, some].addcmul_(xhat[some, None], inner, value=-1).mul_(scale[some, None])
        return blocks

    def panels(self, rows: range) -> Iterator[Panel]:
        """Groups of tokens."""
        for tokens in groups(rows, self.d_out * self.d_in):
            yield Panel(tuple(tokens), tuple(tokens), torch.cat([self.row(t) for t in tokens]))

    def energy(self) -> float:
        """‖J‖_F², row by row: r²·(‖w‖² − shrink·(w·x̂)²) of w = γ_i·(e_i − 1/d)."""
        xhat, d = self.at.xhat.double(), self.d_in
        gamma = xhat.new_ones(d) if self.at.gamma is None else self.at.gamma.double()
        size = gamma.square().sum() * (1 - 1 / d if self.at.centred else 1)
        inner = (gamma * xhat).square().sum(-1)
        return float((self.at.r.double().square() * (size - self.at.squared_shrink().double() * inner)).sum())
