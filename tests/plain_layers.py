"""Closed forms of the Jacobians of a transformer's pieces, of one token or one head, written for reading, in NumPy."""

from __future__ import annotations

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
    return r * gamma[:, None] * inner


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
