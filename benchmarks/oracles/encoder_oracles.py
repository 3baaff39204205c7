"""Layers of each family of encoders in plain torch, from their formulas, as in `family_oracles`: no code of the models, only
their weights. Where a model rounds a constant to float32, so does its oracle: it is the model's constant."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from oracles.family_oracles import apply, at, gelu, gelu_tanh, halves, layer_norm, linear, rms

Tensor = torch.Tensor


def quick_gelu(z: Tensor) -> Tensor:
    return z / (1 + torch.exp(-1.702 * z))


def relu(z: Tensor) -> Tensor:
    return z.clamp(min=0)


def silu(z: Tensor) -> Tensor:
    return z / (1 + torch.exp(-z))


def eps(config: Any) -> float:
    return float(config.layer_norm_eps)


def by_width(width: int) -> float:
    return float(width**-0.5)


def unscaled(width: int) -> float:
    return 1.0


# ---- what is added to the scores


def no_bias(oracle: Oracle, q: Tensor, k: Tensor) -> Tensor:
    return torch.zeros((), dtype=q.dtype)


def bucket_of_t5(distance: int, count: int, farthest: int) -> int:
    """Of key minus query: half of the buckets for each side, half of these one a distance, the rest by its logarithm."""
    side, exact = count // 2, count // 4
    own = side if distance > 0 else 0
    d = abs(distance)
    if d < exact:
        return own + d
    return own + min(side - 1, exact + int(math.log(d / exact) / math.log(farthest / exact) * (side - exact)))


def bias_of_t5(oracle: Oracle, q: Tensor, k: Tensor) -> Tensor:
    config, table = oracle.config, oracle.base.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    sizes = config.relative_attention_num_buckets, config.relative_attention_max_distance
    T = q.shape[1]
    return torch.stack([torch.stack([table[bucket_of_t5(s - t, *sizes)] for s in range(T)]) for t in range(T)]).permute(
        2, 0, 1
    )


def bucket_of_deberta(distance: int, buckets: int, farthest: int) -> int:
    """One bucket a distance up to half of them, and then by its logarithm."""
    half = buckets // 2
    if buckets <= 0 or abs(distance) <= half:
        return distance
    far = math.ceil(math.log(abs(distance) / half) / math.log((farthest - 1) / half) * (half - 1)) + half
    return far if distance > 0 else -far


def bias_of_deberta(oracle: Oracle, q: Tensor, k: Tensor) -> Tensor:
    """Contents of queries with positions of keys, and the other way round, by the same relative position."""
    config, own, encoder = oracle.config, at(oracle.layer, "attention.self"), oracle.base.encoder
    positions = encoder.rel_embeddings.weight
    if getattr(config, "norm_rel_ebd", "none") == "layer_norm":
        positions = layer_norm(positions, encoder.LayerNorm.weight, encoder.LayerNorm.bias, eps(config))
    names = (
        ("query_proj", "key_proj") if getattr(config, "share_att_key", False) else ("pos_query_proj", "pos_key_proj")
    )
    heads, T = q.shape[0], q.shape[1]
    pq, pk = (apply(linear(getattr(own, name)), positions).view(len(positions), heads, -1) for name in names)
    buckets, farthest, span = (
        getattr(config, "position_buckets", -1),
        config.max_position_embeddings,
        len(positions) // 2,
    )
    added = q.new_zeros(heads, T, T)
    for t in range(T):
        for s in range(T):
            here = min(max(bucket_of_deberta(t - s, buckets, farthest) + span, 0), 2 * span - 1)
            added[:, t, s] = (q[:, t] * pk[here]).sum(-1) + (k[:, s] * pq[here]).sum(-1)
    return scale_of_deberta(q.shape[-1]) * added


def scale_of_deberta(width: int) -> float:
    """One over the root of three widths, which the model rounds to float32."""
    return 1 / float(torch.tensor(3.0 * width, dtype=torch.float32).sqrt())


# ---- rows


@dataclass(frozen=True)
class Row:
    """What a family computes, and where it keeps its weights.

    before, after, post    norms in front of the branches, on the sums, and what scales the branches, feature by feature
    qkv          its maps apart, by name, or one name of all three
    gate         the map whose output goes through the activation, of a gated MLP, or one name of both, gate first
    """

    attention: str
    qkv: tuple[str, ...]
    out: str
    up: str
    down: str
    act: Callable[[Tensor], Tensor] = gelu
    gate: str | None = None
    norm: Callable[..., Tensor] = layer_norm
    eps: Callable[[Any], float] = eps
    before: tuple[str | None, str | None] = (None, None)
    after: tuple[str, str] | None = None
    post: tuple[str, str] | None = None
    scale: Callable[[int], float] = by_width
    bias: Callable[[Oracle, Tensor, Tensor], Tensor] = no_bias
    turned: bool = False
    reach: Callable[[Any, int], int | None] = lambda config, index: None
    causal: bool = False


QKV = ("q_proj", "k_proj", "v_proj")
BERT: dict[str, Any] = {
    "attention": "attention.self",
    "qkv": ("query", "key", "value"),
    "out": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
    "after": ("attention.output.LayerNorm", "output.LayerNorm"),
}
TOWER: dict[str, Any] = {
    "attention": "self_attn",
    "qkv": QKV,
    "out": "self_attn.out_proj",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
    "before": ("layer_norm1", "layer_norm2"),
}
SEEN: dict[str, Any] = {
    "attention": "attention",
    "qkv": QKV,
    "out": "attention.o_proj",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}
DINO: dict[str, Any] = SEEN | {"before": ("norm1", "norm2"), "post": ("layer_scale1", "layer_scale2")}
DEBERTA = Row(**BERT | {"qkv": ("query_proj", "key_proj", "value_proj")}, scale=scale_of_deberta, bias=bias_of_deberta)
ALBERT = Row(
    attention="attention", qkv=("query", "key", "value"), out="attention.dense", up="ffn", down="ffn_output",
    act=gelu_tanh, after=("attention.LayerNorm", "full_layer_layer_norm"),
)  # fmt: skip
T5: dict[str, Any] = {
    "attention": "layer.0.SelfAttention",
    "qkv": ("q", "k", "v"),
    "out": "layer.0.SelfAttention.o",
    "down": "layer.1.DenseReluDense.wo",
    "norm": rms,
    "eps": lambda config: config.layer_norm_epsilon,
    "before": ("layer.0.layer_norm", "layer.1.layer_norm"),
    "scale": unscaled,
    "bias": bias_of_t5,
}
ROWS = {
    "roberta": Row(**BERT),
    "electra": Row(**BERT),
    "distilbert": Row(
        attention="attention", qkv=("q_lin", "k_lin", "v_lin"), out="attention.out_lin", up="ffn.lin1", down="ffn.lin2",
        eps=lambda config: 1e-12, after=("sa_layer_norm", "output_layer_norm"),
    ),
    "albert": ALBERT,
    "albert-groups": ALBERT,
    "deberta-v2": DEBERTA,
    "deberta-v3": DEBERTA,
    "modernbert": Row(
        attention="attn", qkv=("Wqkv",), out="attn.Wo", up="mlp.Wi", gate="mlp.Wi", down="mlp.Wo",
        eps=lambda config: config.norm_eps, before=("attn_norm", "mlp_norm"), turned=True,
        reach=lambda config, index: config.local_attention // 2 if config.layer_types[index][0] == "s" else None,
    ),
    "t5": Row(**T5, up="layer.1.DenseReluDense.wi", act=relu),
    "t5-gated": Row(**T5, gate="layer.1.DenseReluDense.wi_0", up="layer.1.DenseReluDense.wi_1", act=gelu_tanh),
    "clip-text": Row(**TOWER, act=quick_gelu, causal=True),
    "siglip-text": Row(**TOWER, act=gelu_tanh),
    "vit": Row(**SEEN, before=("layernorm_before", "layernorm_after")),
    "dinov2": Row(**DINO),
    "dinov2-gated": Row(**DINO | {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}, act=silu),
    "clip-vision": Row(**TOWER, act=quick_gelu),
    "siglip-vision": Row(**TOWER, act=gelu_tanh),
    "whisper": Row(
        attention="self_attn", qkv=QKV, out="self_attn.out_proj", up="fc1", down="fc2", eps=lambda config: 1e-5,
        before=("self_attn_layer_norm", "final_layer_norm"),
    ),
}  # fmt: skip
"""By the names of `encoder_models.CASES`."""


# ---- layers


@dataclass(frozen=True)
class Oracle:
    """One layer of a model, by its row; `tables` of rotary positions, cos and sin (T, r)."""

    row: Row
    config: Any
    base: Any
    layer: Any
    index: int
    heads: int
    tables: tuple[Tensor, Tensor] | None

    def _norm(self, x: Tensor, path: str | None) -> Tensor:
        module = None if path is None else at(self.layer, path)
        if module is None or not list(module.parameters()):  # ModernBERT has none in front of its first attention
            return x
        return self.row.norm(x, module.weight, getattr(module, "bias", None), self.row.eps(self.config))

    def _maps(self) -> list[tuple[Tensor, Tensor | None]]:
        own = at(self.layer, self.row.attention)
        if len(self.row.qkv) == 3:
            return [linear(getattr(own, name)) for name in self.row.qkv]
        weight, bias = linear(getattr(own, self.row.qkv[0]))
        return list(zip(weight.chunk(3), bias.chunk(3), strict=True))

    def _mixed(self, h: Tensor) -> Tensor:
        """(heads, T, d_head)."""
        q, k, v = (apply(map_, h).view(len(h), self.heads, -1).transpose(0, 1) for map_ in self._maps())
        if self.row.turned:
            assert self.tables is not None
            q, k = halves(q, *self.tables), halves(k, *self.tables)
        scores = self.row.scale(q.shape[-1]) * q @ k.mT + self.row.bias(self, q, k)
        behind = torch.arange(len(h))[:, None] - torch.arange(len(h))
        reach = self.row.reach(self.config, self.index)
        seen = behind.abs() <= (len(h) if reach is None else reach)
        if self.row.causal:
            seen &= behind >= 0
        weights = torch.where(seen, scores.exp(), 0.0)
        return weights / weights.sum(-1, keepdim=True) @ v

    def head(self, x: Tensor, head: int, norm: bool = True) -> Tensor:
        mixed = self._mixed(self._norm(x, self.row.before[0]) if norm else x)[head]
        width = mixed.shape[-1]
        weight, _ = linear(at(self.layer, self.row.out))
        return mixed @ weight[:, head * width : (head + 1) * width].T

    def attention(self, x: Tensor, norm: bool = True) -> Tensor:
        mixed = self._mixed(self._norm(x, self.row.before[0]) if norm else x).transpose(0, 1).reshape(len(x), -1)
        return self._scaled(apply(linear(at(self.layer, self.row.out)), mixed), 0, norm)

    def mlp(self, x: Tensor, norm: bool = True) -> Tensor:
        row = self.row
        h = self._norm(x, row.before[1]) if norm else x
        inner = row.act(apply(linear(at(self.layer, row.gate or row.up)), h))
        if row.gate == row.up:
            first, second = apply(linear(at(self.layer, row.up)), h).chunk(2, -1)
            inner = row.act(first) * second
        elif row.gate is not None:
            inner = inner * apply(linear(at(self.layer, row.up)), h)
        return self._scaled(apply(linear(at(self.layer, row.down)), inner), 1, norm)

    def _scaled(self, y: Tensor, which: int, norm: bool) -> Tensor:
        return y * at(self.layer, self.row.post[which]).lambda1 if norm and self.row.post is not None else y

    def whole(self, x: Tensor) -> Tensor:
        for branch, after in zip((self.attention, self.mlp), self.row.after or (None, None), strict=True):
            x = self._norm(x + branch(x), after)
        return x
