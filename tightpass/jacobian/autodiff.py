"""Products with a Jacobian by automatic differentiation, in chunks of columns.

Jᵀ·Y is `vmap` over the pullback, whose forward pass runs once. J·X is `vmap` over `jvp` with the
point held outside of the batch, so that the forward pass runs once a chunk
(Pearlmutter 1994; Griewank & Walther 2008, ch. 3).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch.func import jvp, vjp, vmap

Function = Callable[[torch.Tensor], torch.Tensor]

# Intermediates of this size stay in the allocator's arena. Larger ones are mapped afresh
# for every chunk, and fresh pages cost more than the arithmetic that fills them.
ARENA_BYTES = 16 * 2**20


def chunk_size(bytes_per_column: int, memory: int | None) -> int:
    """Columns per chunk: as many as fit the arena, or a quarter of `memory` if that is less."""
    budget = ARENA_BYTES if memory is None else min(ARENA_BYTES, memory // 4)
    return max(1, budget // max(bytes_per_column, 1))


class Linearisation:
    """A function at a point: its value, tangents pushed forward, cotangents pulled back.

    fn, x     a map of (tokens, d) tensors to (tokens', d') tensors, and the point
    columns   how many tangents or cotangents are carried at once
    """

    def __init__(self, fn: Function, x: torch.Tensor, columns: int) -> None:
        self.fn, self.x, self.columns = fn, x, columns

    @cached_property
    def _pullback(self) -> tuple[torch.Tensor, Function]:
        y, pull, *_ = vjp(self.fn, self.x)
        return y.detach(), lambda cotangent: pull(cotangent)[0]

    @property
    def y(self) -> torch.Tensor:
        """The value at x."""
        return self._pullback[0]

    def push(self, tangents: torch.Tensor) -> torch.Tensor:
        """(k, tokens, d) tangents -> (k, tokens', d')."""

        def one(tangent: torch.Tensor) -> torch.Tensor:
            pushed: torch.Tensor = jvp(self.fn, (self.x,), (tangent,))[1]
            return pushed

        return self._chunked(one, tangents)

    def pull(self, cotangents: torch.Tensor) -> torch.Tensor:
        """(k, tokens', d') cotangents -> (k, tokens, d)."""
        return self._chunked(self._pullback[1], cotangents)

    def _chunked(self, one: Function, batch: torch.Tensor) -> torch.Tensor:
        """Detached: a module's parameters may ask for gradients."""
        if batch.shape[0] <= self.columns:
            return vmap(one)(batch).detach()
        return torch.cat([vmap(one)(part).detach() for part in batch.split(self.columns)])
