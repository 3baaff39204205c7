"""A block's Jacobian to 40 digits: central differences of its formulas in 90-digit arithmetic.

Nothing is shared with the package but the weights, x, and which ReLU units are active.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import mpmath
import numpy as np
import torch
from mpmath import mpf
from torch import nn

from oracles.places import place_of
from tightpass.models.blocks import Block

DIGITS = 90
STEP = mpf(10) ** -25  # the truncation error is its square, the rounding error 10^-90 over it


def exact(tensor: torch.Tensor) -> np.ndarray:
    """Binary floating-point numbers are exact in a wider format."""
    return np.vectorize(mpf, otypes=[object])(tensor.detach().double().numpy())


def elementwise(f: Callable) -> Callable:
    return np.vectorize(f, otypes=[object])


sqrt, exp = elementwise(mpmath.sqrt), elementwise(mpmath.exp)
gelu = elementwise(lambda z: z * (1 + mpmath.erf(z / mpmath.sqrt(2))) / 2)


@lru_cache(maxsize=64)
def weights(module: nn.Linear) -> tuple[np.ndarray, np.ndarray]:
    bias = torch.zeros(1) if module.bias is None else module.bias
    return exact(module.weight).T, exact(bias)


def linear(module: nn.Linear, h: np.ndarray) -> np.ndarray:
    weight, bias = weights(module)
    return h @ weight + bias


def layer_norm(module: nn.LayerNorm | None, h: np.ndarray) -> np.ndarray:
    if module is None:
        return h
    centred = h - h.sum(-1, keepdims=True) / h.shape[-1]
    variance = (centred * centred).sum(-1, keepdims=True) / h.shape[-1]
    return centred / sqrt(variance + mpf(module.eps)) * exact(module.weight) + exact(module.bias)


def mlp(parts, h: np.ndarray, pattern: np.ndarray | None) -> np.ndarray:
    z = linear(parts.up, h)
    return linear(parts.down, gelu(z) if pattern is None else z * pattern)


def attention(block: Block, parts, h: np.ndarray, head: int | None = None) -> np.ndarray:
    count = block.model.config.num_attention_heads
    q, k, v = (linear(m, h) for m in (parts.query, parts.key, parts.value))
    d_head = q.shape[1] // count
    mixed = np.zeros_like(q)
    mixed[:] = mpf(0)
    for i in range(count) if head is None else [head]:
        here = slice(i * d_head, (i + 1) * d_head)
        scores = q[:, here] @ k[:, here].T / mpmath.sqrt(d_head)
        weights = exp(scores)
        if place_of(block.model.config).causal(block.model.config):
            weights = np.where(np.tril(np.ones(scores.shape, bool)), weights, mpf(0))
        mixed[:, here] = weights / weights.sum(-1, keepdims=True) @ v[:, here]
    return linear(parts.projection, mixed)  # a bias has no derivative


def whole_layer(block: Block, x: np.ndarray, pattern: np.ndarray | None) -> np.ndarray:
    parts = block.layers[0]
    if parts.attn_norm is not None:
        x = x + attention(block, parts, layer_norm(parts.attn_norm, x))
        return x + mlp(parts, layer_norm(parts.mlp_norm, x), pattern)
    pieces = place_of(block.model.config).pieces(parts.layer)
    x = layer_norm(pieces.first, x + attention(block, parts, x))
    return layer_norm(pieces.second, x + mlp(parts, x, pattern))


def function(block: Block) -> Callable[[np.ndarray], np.ndarray]:
    parts = block.layers[0]
    pattern = None
    if block.has_relu_units:
        pattern = exact((block.unit_calls()[0].y > 0).reshape(block.tokens, -1))
    if block.kind == "mlp":
        return lambda x: mlp(parts, layer_norm(parts.mlp_norm, x), pattern)
    if block.kind == "layer":
        return lambda x: whole_layer(block, x, pattern)
    return lambda x: attention(block, parts, layer_norm(parts.attn_norm, x), block.options.head)


def jacobian(block: Block) -> np.ndarray:
    """J (N, N) of an `mlp`, `attn`, `head` or `layer` at block.x, as mpmath numbers."""
    with mpmath.workdps(DIGITS):
        f, x = function(block), exact(block.x)
        columns = []
        for place in np.ndindex(x.shape):
            ahead, behind = x.copy(), x.copy()
            ahead[place] += STEP
            behind[place] -= STEP
            columns.append(((f(ahead) - f(behind)) / (2 * STEP)).ravel())
        return np.stack(columns, axis=1)


def error(J: np.ndarray, true: np.ndarray) -> np.ndarray:
    """J − true, rounded to float64 only after the subtraction."""
    with mpmath.workdps(DIGITS):
        return (exact(torch.from_numpy(np.ascontiguousarray(J, dtype=np.float64))) - true).astype(np.float64)
