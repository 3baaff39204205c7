"""Rotary positions: queries and keys of token t are multiplied by a rotation R_t (Su et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rotation:
    """R_t x = cos_t∘x + sin_t∘half(x) with half(x) = (−x₂, x₁) of its two halves; cos, sin (T, r).

    Only the first r of d_head entries turn.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    def turn(self, x: torch.Tensor, t: int | slice) -> torch.Tensor:
        """R_t on the last axis of x (..., d_head); for a slice of tokens x is (..., tokens, d_head)."""
        turning, rest = self._split(x)
        return torch.cat([self.cos[t] * turning + self.sin[t] * _half(turning), rest], -1)

    def back(self, x: torch.Tensor, t: int | slice) -> torch.Tensor:
        """R_tᵀ likewise."""
        turning, rest = self._split(x)
        return torch.cat([self.cos[t] * turning - _half(self.sin[t] * turning), rest], -1)

    def _split(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        r = self.cos.shape[-1]
        return x[..., :r], x[..., r:]


def _half(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)
