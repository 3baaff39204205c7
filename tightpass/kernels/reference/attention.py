"""Blocks of attention's Jacobian, one after the other: NumPy, torch or CuPy, in any precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def attention_blocks(
    a: Any,
    vo: Any,
    vt: Any,
    rest: Any,
    p: Any,
    k: Any,
    q: Any,
    out: Any,
    columns: Sequence[int],
    diagonal: Sequence[int],
    first: Sequence[int] | None,
    norm: tuple[Any, Any, Any, Any, Any] | None,
) -> None:
    """As `tightpass.kernels.attention.attention_blocks`."""
    for t in range(a.shape[0]):
        for s in range(int(columns[t])):
            weight = a[t, :, s]  # (H,)
            update = weight * (vo[:, :, s] - vt[:, :, t] - rest[:, :, t])  # (d_out, H)
            w = (weight[:, None, None] * p).sum(0) + update @ k[t]
            on_diagonal = s == int(diagonal[t])
            if on_diagonal:
                w = w + q[t]
            if norm is not None:
                px, kx, qx, x, r = norm
                inner = (weight * px[:, :, s]).sum(1) + update @ kx[t, :, s]
                if on_diagonal:
                    inner = inner + qx[t]
                w = r[s] * (w - inner[:, None] * x[s] / x.shape[1])
            block = (t, s) if first is None else int(first[t]) + s
            out[block] = w
