"""Which route to all singular values, and why: the words that `plan` shows and results keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tightpass.kernels import native
from tightpass.structure import BlockDiagonal, Structure
from tightpass.units import format_bytes


@dataclass(frozen=True)
class Route:
    """`name` is "two-stage", "gram" or "lapack"; `batched`: one decomposition a token."""

    name: str
    reason: str
    batched: bool = False

    def __str__(self) -> str:
        return f"{'one small SVD a token' if self.batched else 'one dense SVD'}, {self.name}: {self.reason}"


def choose(
    structure: Structure, shape: tuple[int, int], block: tuple[int, int], dtype: Any, memory: int | None = None
) -> Route:
    """The route for a matrix in blocks.

    shape, block   of the whole matrix, and of one of its (token, token) blocks
    memory         bytes that may be taken; None: enough
    """
    if isinstance(structure, BlockDiagonal):
        name, reason = _of_one()
        return Route(name, f"block-diagonal; {reason}", batched=True)
    size, gram = dense_bytes(shape, dtype), gram_bytes(shape)
    if memory is not None and size > memory and np.dtype(dtype) == np.float32 and gram <= memory:
        return Route(
            "gram",
            f"the matrix takes {format_bytes(size)} where {format_bytes(memory)} are allowed, its float64 Gram matrix {format_bytes(gram)}",
        )
    return Route(*_of_one())


def _of_one() -> tuple[str, str]:
    if native.extension is not None:
        return "two-stage", "reduced in place by the compiled kernels"
    return "lapack", "no compiled kernels in this installation"


def dense_bytes(shape: tuple[int, int], dtype: Any) -> int:
    """What the dense route holds: the matrix, reduced in place, and a tenth of it (`exact.work_of`: and beside it)."""
    return int(1.1 * shape[0] * shape[1] * np.dtype(dtype).itemsize)


def gram_bytes(shape: tuple[int, int]) -> int:
    """The Gram matrix, in which its eigenvalues are found, and a fifth of it."""
    return int(1.2 * shape[1] ** 2 * 8)
