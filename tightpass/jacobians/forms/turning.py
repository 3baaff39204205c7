"""What becomes of queries and keys between their map and the scores, token by token: a norm of each head, and a rotation.

The derivative of token t is R_t·N_t. N_t of a norm is γ∘r_t·(I − x̂_t x̂_tᵀ/n), less its mean for LayerNorm, of n features:
d_head, or, `wide`, those of all heads together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tightpass.models.formulas import HeadNorm, Rotation


@dataclass(frozen=True)
class HeadNormAt:
    """A norm at queries or keys: γ (heads or 1, d_head), x̂ (heads, T, d_head), r (heads, T)."""

    gamma: torch.Tensor | None
    centred: bool
    wide: bool
    xhat: torch.Tensor
    r: torch.Tensor

    @property
    def count(self) -> int:
        """Features that are normed together."""
        return self.xhat.shape[-1] * (self.xhat.shape[0] if self.wide else 1)

    def push(self, x: torch.Tensor, t: int | slice) -> torch.Tensor:
        """N_t on x (heads, n, d_head) or, of a slice of tokens, (.., heads, tokens, d_head)."""
        return self._scaled(self._inner(x, t))

    def pull(self, x: torch.Tensor, t: int | slice) -> torch.Tensor:
        """N_tᵀ likewise."""
        return self._inner(self._scaled(x), t)

    def _scaled(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.gamma is None else x * self.gamma[:, None]

    def _inner(self, x: torch.Tensor, t: int | slice) -> torch.Tensor:
        xhat, r = self._at(t)
        if self.centred:
            x = x - self._sum(x) / self.count
        return (x - xhat * self._sum(xhat * x) / self.count) * r

    def _sum(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum((-1, -3) if self.wide else -1, keepdim=True)

    def _at(self, t: int | slice) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(t, int):
            t = slice(t, t + 1)
        return self.xhat[:, t], self.r[:, t, None]

    def rows(self, u: torch.Tensor, t: int | slice, W: torch.Tensor) -> torch.Tensor:
        """u_h·(N_t W)_h of each head by itself, all rows at one token or each at its own: u (heads, n, d_head),
        W (heads, d_head, d) -> (heads, n, d)."""
        if not self.wide:
            return self.pull(u, t) @ W
        (xhat, r), u = self._at(t), self._scaled(u)
        shared = torch.einsum("htd,hde->te", xhat, W)  # of all heads
        return r * (u @ W - (u * xhat).sum(-1, keepdim=True) / self.count * shared)


@dataclass(frozen=True)
class Turning:
    """A norm, if there is one, and then a rotation, if there is one."""

    norm: HeadNormAt | None
    rotation: Rotation | None

    def turn(self, x: torch.Tensor, t: int | slice) -> torch.Tensor:
        """R_t·N_t on x (heads, n, d_head) or, of a slice of tokens, (.., heads, tokens, d_head)."""
        x = x if self.norm is None else self.norm.push(x, t)
        return x if self.rotation is None else self.rotation.turn(x, t)

    def back(self, x: torch.Tensor, t: int | slice) -> torch.Tensor:
        """N_tᵀ·R_tᵀ likewise."""
        x = x if self.rotation is None else self.rotation.back(x, t)
        return x if self.norm is None else self.norm.pull(x, t)

    def rows(self, u: torch.Tensor, t: int | slice, W: torch.Tensor) -> torch.Tensor:
        """u_h·(R_t N_t W)_h of each head by itself, all rows at one token or each at its own: u (heads, n, d_head),
        W (heads, d_head, d) -> (heads, n, d)."""
        u = u if self.rotation is None else self.rotation.back(u, t)
        return u @ W if self.norm is None else self.norm.rows(u, t, W)


def normed_at(norm: HeadNorm | None, x: torch.Tensor, repeats: int, chosen: slice) -> HeadNormAt | None:
    """A norm at x (heads, T, d_head), each head of which is there as often as queries share it, and then some heads of it."""
    if norm is None:
        return None
    xhat, r = (part.repeat_interleave(repeats, 0)[chosen].contiguous() for part in norm.at(x))
    gamma = norm.kind.gamma
    if gamma is not None and len(gamma) > 1:
        gamma = gamma.repeat_interleave(repeats, 0)[chosen]
    return HeadNormAt(gamma, norm.kind.centred, norm.wide, xhat, r)


def turning(norm: HeadNormAt | None, rotation: Rotation | None) -> Turning | None:
    """None where queries or keys are what their map gives."""
    return None if norm is None and rotation is None else Turning(norm, rotation)
