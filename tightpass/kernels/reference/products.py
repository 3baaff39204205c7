"""Products of stored blocks in twice float64's precision: NumPy, torch or CuPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def block_product(
    blocks: Any, rows: Sequence[int], columns: Sequence[int], v: Any, high: Any, low: Any, adjoint: bool
) -> None:
    """As `tightpass.kernels.products.block_product`, one column of a block after the other; every product and every sum
    with its error (Dekker 1971, Knuth 1969)."""
    for block, row, column in zip(blocks, rows, columns, strict=True):
        place, source = (int(column), int(row)) if adjoint else (int(row), int(column))
        for j, a in enumerate(block if adjoint else block.T):
            b = v[source, j]
            product, (p, q), (r, s) = a * b, _halves(a), _halves(b)
            error = ((p * r - product) + p * s + q * r) + q * s
            total = high[place] + product
            seen = total - high[place]
            low[place] += ((high[place] - (total - seen)) + (product - seen)) + error
            high[place] = total


def _halves(a: Any) -> tuple[Any, Any]:
    """Two numbers of half as many digits, whose products are exact."""
    wide = a * (2.0**27 + 1)
    upper = wide - (wide - a)
    return upper, a - upper
