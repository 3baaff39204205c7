"""What an attention's closed form is made of: projections of its heads, and what becomes of their scores."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from tightpass.jacobians.forms.turning import Turning


@dataclass(frozen=True)
class Heads:
    """Projections of H heads, Wq, Wk, Wv (H, d_head, d) folded with the norm, Wo (d_out, H, d_head);
    q, k, v (H, T, d_head) at x, biases and what turns them included; `scale` multiplies the scores."""

    Wq: torch.Tensor
    Wk: torch.Tensor
    Wv: torch.Tensor
    Wo: torch.Tensor
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    scale: float
    turn_q: Turning | None = None
    turn_k: Turning | None = None

    def double(self) -> Heads:
        """The same in float64."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        wide: dict[str, Any] = {name: part.double() for name, part in given.items() if isinstance(part, torch.Tensor)}
        return replace(self, **wide)


@dataclass(frozen=True)
class Scores:
    """What becomes of the scores before their softmax.

    mask    (1 or H, T, T), added; None for none
    cap     c of c·tanh(z/c), before the mask; None for none
    sinks   (H,) scores of sinks, beside those of the tokens; None for none
    """

    mask: torch.Tensor | None = None
    cap: float | None = None
    sinks: torch.Tensor | None = None


PLAIN = Scores()
"""Scores that go into the softmax as they are."""


def softmax_beside(scores: torch.Tensor, sinks: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | float]:
    """Weights of the tokens, and (H, T, 1) that of the sink."""
    if sinks is None:
        return scores.softmax(-1), 0.0
    column = sinks.to(scores.dtype).view(-1, 1, 1).expand(*scores.shape[:-1], 1)
    weights = torch.cat([scores, column], -1).softmax(-1)
    return weights[..., :-1].contiguous(), weights[..., -1:]
