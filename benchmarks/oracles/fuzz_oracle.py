"""Jacobians of small blocks in 200 digits, by forward-mode derivatives of the formulas of each family.

Nothing is shared with the package: weights come from the Hugging Face model, formulas from the papers. What is not decided by
the numbers, the sign of a pre-activation within rounding of zero, is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import mpmath
import numpy as np
import torch
from mpmath import mpf
from torch import nn

from oracles.places import place_of

DIGITS = 200  # a LayerNorm of two features cancels 48 digits of its derivative, layer after layer
SVD_DIGITS = 50
ZERO = mpf(10) ** -40
"""Of σ₁: below this a value of an SVD in 50 digits is zero, or might be."""


def exact(tensor: torch.Tensor) -> np.ndarray:
    """Binary floating-point numbers as mpmath numbers, without rounding."""
    values = tensor.detach().double().numpy()
    return np.array([mpf(float(v)) for v in values.ravel()], dtype=object).reshape(values.shape)


def each(f: Callable) -> Callable:
    return np.vectorize(f, otypes=[object])


exp, tanh, sin, cos, sech = (each(f) for f in (mpmath.exp, mpmath.tanh, mpmath.sin, mpmath.cos, mpmath.sech))
inverse_root = each(lambda v: 1 / mpmath.sqrt(v))
logistic = each(lambda z: 1 / (1 + mpmath.exp(-z)))
normal_cdf = each(lambda z: mpmath.erfc(-z / mpmath.sqrt(2)) / 2)  # keeps its digits where it is tiny
normal_pdf = each(lambda z: mpmath.exp(-z * z / 2) / mpmath.sqrt(2 * mpmath.pi))


class Dual:
    """A value (T, d) and its derivative (N, T, d) along N directions."""

    def __init__(self, value: np.ndarray, slope: np.ndarray) -> None:
        self.value, self.slope = value, slope

    __array_ufunc__ = None  # an array on the left asks us

    def __add__(self, other: Dual | np.ndarray) -> Dual:
        if isinstance(other, Dual):
            return Dual(self.value + other.value, self.slope + other.slope)
        return Dual(self.value + other, self.slope)

    __radd__ = __add__

    def __sub__(self, other: Dual) -> Dual:
        return Dual(self.value - other.value, self.slope - other.slope)

    def __mul__(self, other: Dual | np.ndarray) -> Dual:
        if isinstance(other, Dual):
            return Dual(self.value * other.value, self.slope * other.value + self.value * other.slope)
        return Dual(self.value * other, self.slope * other)

    __rmul__ = __mul__

    def __matmul__(self, matrix: np.ndarray) -> Dual:
        return Dual(self.value @ matrix, self.slope @ matrix)

    def __rmatmul__(self, matrix: np.ndarray) -> Dual:
        return Dual(matrix @ self.value, matrix @ self.slope)

    def through(self, value: np.ndarray, slope: np.ndarray) -> Dual:
        """An elementwise function, given its value and its derivative here."""
        return Dual(value, self.slope * slope)

    def mean(self) -> Dual:
        d = self.value.shape[-1]
        return Dual(self.value.sum(-1, keepdims=True) / d, self.slope.sum(-1, keepdims=True) / d)


def identity(x: np.ndarray) -> Dual:
    """x itself, along every one of its entries."""
    slope = np.full((x.size, *x.shape), mpf(0), dtype=object)
    for i, place in enumerate(np.ndindex(x.shape)):
        slope[(i, *place)] = mpf(1)
    return Dual(x, slope)


# ---- elementwise functions, under torch's names


def gelu(z: Dual) -> Dual:
    cdf = normal_cdf(z.value)
    return z.through(z.value * cdf, cdf + z.value * normal_pdf(z.value))


def gelu_new(z: Dual) -> Dual:
    """By tanh, with the constants as they are in double precision."""
    c, a = mpf(math.sqrt(2 / math.pi)), mpf(0.044715)
    inner = c * (z.value + a * z.value**3)
    half = logistic(2 * inner)  # (1 + tanh)/2
    return z.through(z.value * half, half + z.value * sech(inner) ** 2 / 2 * c * (1 + 3 * a * z.value**2))


def silu(z: Dual) -> Dual:
    s = logistic(z.value)
    return z.through(z.value * s, s + z.value * s * logistic(-z.value))


def sigmoid(z: Dual) -> Dual:
    s = logistic(z.value)
    return z.through(s, s * logistic(-z.value))


def tanh_of(z: Dual) -> Dual:
    return z.through(tanh(z.value), sech(z.value) ** 2)


def sine(z: Dual) -> Dual:
    return z.through(sin(z.value), cos(z.value))


def reciprocal(z: Dual) -> Dual:
    return z.through(1 / z.value, -1 / z.value**2)


def signs(z: np.ndarray) -> np.ndarray:
    return each(lambda v: mpf((v > 0) - (v < 0)))(z)


def absolute(z: Dual) -> Dual:
    return z.through(abs(z.value), signs(z.value))


def relu(z: Dual) -> Dual:
    active = each(lambda v: mpf(int(v > 0)))(z.value)
    return z.through(z.value * active, active)


def exponential(z: Dual) -> Dual:
    value = exp(z.value)
    return z.through(value, value)


def softmax(z: Dual) -> Dual:
    a = exp(z.value - z.value.max(-1, keepdims=True))
    a = a / a.sum(-1, keepdims=True)
    return Dual(a, a * (z.slope - (a * z.slope).sum(-1, keepdims=True)))


def normed(z: Dual) -> Dual:
    """A LayerNorm without weights, as torch has it by default."""
    centred = z - z.mean()
    variance = (centred * centred).mean()
    root = inverse_root(variance.value + mpf(1e-5))
    return centred * variance.through(root, -(root**3) / 2)


class Exact:
    """The functions of torch that a user's function may call."""

    tanh, sin, abs, relu, sigmoid, reciprocal = map(staticmethod, (tanh_of, sine, absolute, relu, sigmoid, reciprocal))
    exp, gelu, softmax, normed = map(staticmethod, (exponential, gelu, softmax, normed))


ACTIVATIONS = {"gelu": gelu, "gelu_new": gelu_new, "silu": silu, "tanh": tanh_of}


# ---- pieces of a transformer


def linear(module: nn.Linear, h: Dual) -> Dual:
    out = h @ exact(module.weight).T
    return out if module.bias is None else out + exact(module.bias)


def layer_norm(module: nn.LayerNorm, h: Dual) -> Dual:
    centred = h - h.mean()
    variance = (centred * centred).mean()
    root = inverse_root(variance.value + mpf(module.eps))
    scale = variance.through(root, -(root**3) / 2)
    return centred * scale * exact(module.weight) + exact(module.bias)


def softmax_mix(q: Dual, k: Dual, v: Dual, causal: bool) -> Dual:
    """softmax(q kᵀ/√d_head) v of one head. v_s − o_t is formed from differences of values, so that nothing cancels where
    one weight is nearly 1."""
    tokens, d_head = q.value.shape
    root = inverse_root(mpf(d_head))[()]
    scores = q.value @ k.value.T * root
    moved = (q.slope @ k.value.T + q.value @ k.slope.transpose(0, 2, 1)) * root  # (N, T, T)
    value, slope = np.empty((tokens, d_head), object), np.empty((len(q.slope), tokens, d_head), object)
    for t in range(tokens):
        seen = t + 1 if causal else tokens
        a = exp(scores[t, :seen] - max(scores[t, :seen]))
        a = a / a.sum()
        value[t] = a @ v.value[:seen]
        apart = v.value[:seen, None] - v.value[None, :seen]  # (s, u, d_head)
        from_mean = (apart * a[None, :, None]).sum(1)
        slope[:, t] = (moved[:, t, :seen] * a) @ from_mean + (v.slope[:, :seen] * a[:, None]).sum(1)
    return Dual(value, slope)


@dataclass
class Mlp:
    """A down(act(up)); `active` (T, d_ff), where the units are ReLUs, says which of them are on. `seen` is what their
    pre-activations were, exactly."""

    up: nn.Linear
    down: nn.Linear
    activation: str
    active: np.ndarray | None = None
    seen: np.ndarray | None = field(default=None, init=False)

    def __call__(self, h: Dual) -> Dual:
        z = linear(self.up, h)
        if self.activation != "relu":
            return linear(self.down, ACTIVATIONS[self.activation](z))
        self.seen = z.value
        on = z.value > 0 if self.active is None else self.active
        on = each(lambda v: mpf(int(v)))(on)
        return linear(self.down, z.through(z.value * on, on))


@dataclass(frozen=True)
class Attention:
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    projection: nn.Linear
    heads: int
    causal: bool

    def __call__(self, h: Dual, head: int | None = None) -> Dual:
        q, k, v = (linear(m, h) for m in (self.query, self.key, self.value))
        width = q.value.shape[1] // self.heads
        weight, out = exact(self.projection.weight), None
        for i in range(self.heads) if head is None else [head]:
            here = slice(i * width, (i + 1) * width)
            part = [Dual(p.value[:, here], p.slope[:, :, here]) for p in (q, k, v)]
            mixed = softmax_mix(*part, self.causal) @ weight[:, here].T
            out = mixed if out is None else out + mixed
        assert out is not None
        return out if self.projection.bias is None or head is not None else out + exact(self.projection.bias)


@dataclass(frozen=True)
class Layer:
    """One layer. Pre-norm: x + attn(N₁x), then + mlp(N₂·); post-norm: N₁(x + attn x), then N₂(· + mlp ·)."""

    attention: Attention
    mlp: Mlp
    norms: tuple[nn.LayerNorm, nn.LayerNorm]
    pre_norm: bool

    def __call__(self, x: Dual) -> Dual:
        first, second = self.norms
        if self.pre_norm:
            x = x + self.attention(layer_norm(first, x))
            return x + self.mlp(layer_norm(second, x))
        x = layer_norm(first, x + self.attention(x))
        return layer_norm(second, x + self.mlp(x))


@dataclass(frozen=True)
class Layers:
    """A model as the oracle sees it: its layers and the norm after them."""

    layers: Sequence[Layer]
    final_norm: nn.LayerNorm | None


def layers_of(model: nn.Module) -> Layers:
    """A Hugging Face model."""
    config, place = model.config, place_of(model.config)
    activation, causal, pre_norm = (read(config) for read in (place.activation, place.causal, place.pre_norm))
    layers = []
    for p in map(place.pieces, place.layers(model)):
        attention = Attention(p.query, p.key, p.value, p.projection, config.num_attention_heads, causal)
        layers.append(Layer(attention, Mlp(p.up, p.down, activation), (p.first, p.second), pre_norm))
    return Layers(layers, place.final_norm(model))


def block_function(
    model: Layers, kind: str, layer: int | None, head: int | None, norm: bool, residual: bool
) -> Callable[[Dual], Dual]:
    """The map that a block is, in the words of the package."""
    if kind == "model":

        def stack(x: Dual) -> Dual:
            for piece in model.layers:
                x = piece(x)
            return layer_norm(model.final_norm, x) if norm and model.final_norm is not None else x

        return stack
    assert layer is not None
    piece = model.layers[layer]
    if kind == "layer":
        return piece
    first, second = piece.norms if piece.pre_norm and norm else (None, None)

    def branch(x: Dual) -> Dual:
        if kind == "mlp":
            return piece.mlp(x if second is None else layer_norm(second, x))
        return piece.attention(x if first is None else layer_norm(first, x), head)

    return (lambda x: x + branch(x)) if residual else branch


def matrix(y: Dual) -> np.ndarray:
    """J (M, N) of what came out."""
    return y.slope.reshape(len(y.slope), -1).T


def singular_values(J: np.ndarray) -> list[mpf]:
    """Of an (M, N) array of mpf, descending."""
    with mpmath.workdps(SVD_DIGITS):
        size = max((abs(v) for v in J.ravel()), default=mpf(0))
        if size == 0:
            return [mpf(0)] * min(J.shape)
        A = mpmath.matrix((J / size).tolist())
        if A.rows < A.cols:
            A = A.T
        return sorted((size * s for s in mpmath.svd_r(A, compute_uv=False)), reverse=True)


def difference(J: np.ndarray, true: np.ndarray) -> np.ndarray:
    """J − true, rounded to float64 only after the subtraction."""
    with mpmath.workdps(DIGITS):
        return (exact(torch.from_numpy(np.ascontiguousarray(J, dtype=np.float64))) - true).astype(np.float64)
