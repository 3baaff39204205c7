"""Closed forms of the Jacobians of a transformer's pieces, plain and in any precision.

Written for reading, not for speed: the oracle of the compiled kernels, and what runs where they are
not built. The first three take NumPy arrays; the operations of `ops.py` below take those of NumPy, torch or CuPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


def layer_norm(x: Array, gamma: Array, eps: float) -> Array:
    """d LN(x) / dx of one token, (d, d).

    y = γ∘(x − μ)·r + β with r = 1/√(var + ε) gives r·diag(γ)·(I − 1·1ᵀ/d − x̂·x̂ᵀ/d).
    """
    d = len(x)
    centred = x - x.mean()
    r = 1 / np.sqrt((centred**2).mean() + x.dtype.type(eps))
    normed = centred * r
    inner = np.eye(d, dtype=x.dtype) - np.full((d, d), x.dtype.type(1) / d) - np.outer(normed, normed) / d
    return r * gamma[:, None] * inner  # type: ignore[no-any-return]


def mlp(W1: Array, W2: Array, slope: Array) -> Array:
    """d (W2·act(W1·h + b)) / dh of one token, (d, d): W2·diag(act′)·W1; slope (d_ff,) = act′ at W1·h + b."""
    return (W2 * slope) @ W1


def attention(
    h: Array, Wq: Array, Wk: Array, Wv: Array, Wo: Array, bq: Array, bk: Array, bv: Array, causal: bool
) -> NDArray[Any]:
    """d attention(h) / dh of one head, (T, d, T, d), for h (T, d), W* (d_head, d), Wo (d, d_head).

    With a = softmax(s·q kᵀ), o_t = Σ a_ts v_s and s = 1/√d_head, block (t, s) is
    a_ts·Wo·Wv + a_ts·Wo (v_s − o_t) ⊗ s·q_t·Wk + δ_ts·Wo [s·Σ_u a_tu (v_u − o_t) k_uᵀ] Wq.
    """
    T, d = h.shape
    q, k, v = h @ Wq.T + bq, h @ Wk.T + bk, h @ Wv.T + bv
    scale = 1 / np.sqrt(h.dtype.type(Wq.shape[0]))
    scores = scale * q @ k.T
    if causal:
        scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
    a = np.exp(scores - scores.max(1, keepdims=True))
    a /= a.sum(1, keepdims=True)
    o = a @ v
    J = np.zeros((T, d, T, d), dtype=h.dtype)
    for t in range(T):
        for s in range(t + 1 if causal else T):
            J[t, :, s] = a[t, s] * (Wo @ Wv + np.outer(Wo @ (v[s] - o[t]), scale * q[t] @ Wk))
        J[t, :, t] += Wo @ (scale * (a[t, :, None] * (v - o[t])).T @ k) @ Wq
    return J


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
    """`ops.attention_blocks`, one block after the other."""
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


def gather_rows(weight: Any, index: Any, slope: Any | None, out: Any, token: Any | None, norm: Any | None) -> None:
    """`ops.gather_rows`."""
    w = weight[index]
    if slope is not None:
        w = slope[:, None] * w
    if norm is not None:
        x, r = norm[0][token], norm[1][token]
        w = r[:, None] * (w - (w * x).sum(1)[:, None] * x / x.shape[1])
    out[:] = w


def block_product(
    blocks: Any, rows: Sequence[int], columns: Sequence[int], v: Any, high: Any, low: Any, adjoint: bool
) -> None:
    """`ops.block_product`, one column of a block after the other."""

    def halves(a: Any) -> tuple[Any, Any]:
        wide = a * (2.0**27 + 1)
        upper = wide - (wide - a)
        return upper, a - upper

    for block, row, column in zip(blocks, rows, columns, strict=True):
        place, source = (int(column), int(row)) if adjoint else (int(row), int(column))
        for j, a in enumerate(block if adjoint else block.T):
            b = v[source, j]
            product, (p, q), (r, s) = a * b, halves(a), halves(b)
            error = ((p * r - product) + p * s + q * r) + q * s
            total = high[place] + product
            seen = total - high[place]
            low[place] += ((high[place] - (total - seen)) + (product - seen)) + error
            high[place] = total


def norm_right(m: Any, x: Any, r: float, out: Any, gamma: Any | None, centred: bool) -> None:
    """`ops.norm_right`."""
    w = m if gamma is None else m * gamma
    if centred:
        w = w - w.mean(1)[:, None]
    out[:] = r * (w - (w @ x)[:, None] * x / x.shape[0])
