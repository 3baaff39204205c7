"""Rows of weights through a norm: NumPy, torch or CuPy, in any precision."""

from __future__ import annotations

from typing import Any


def gather_rows(weight: Any, index: Any, slope: Any | None, out: Any, token: Any | None, norm: Any | None) -> None:
    """As `tightpass.kernels.rows.gather_rows`."""
    w = weight[index]
    if slope is not None:
        w = slope[:, None] * w
    if norm is not None:
        x, r = norm[0][token], norm[1][token]
        w = r[:, None] * (w - (w * x).sum(1)[:, None] * x / x.shape[1])
    out[:] = w
