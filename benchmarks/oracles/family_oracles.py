"""Layers of each family in plain torch, from their formulas: no code of the models, only their weights.

Tables of rotary positions are data: cosines and sines as the layers were handed them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Tensor = torch.Tensor
Linear = tuple[Tensor, Tensor | None]
"""Weight (out, in) and bias."""


# ---- pieces


def at(root: Any, path: str) -> Any:
    return root.get_submodule(path)


def linear(module: Any) -> Linear:
    return module.weight, module.bias


def conv1d(module: Any) -> Linear:
    return module.weight.T, module.bias


def apply(map_: Linear, x: Tensor) -> Tensor:
    weight, bias = map_
    return x @ weight.T if bias is None else x @ weight.T + bias


def rms(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def rms_plus_one(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    return rms(x, 1 + weight, None, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    y = rms(x - x.mean(-1, keepdim=True), weight, None, eps)
    return y if bias is None else y + bias


def layer_norm_plus_one(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    return layer_norm(x, 1 + weight, bias, eps)


def gelu(z: Tensor) -> Tensor:
    return z * (1 + torch.erf(z / math.sqrt(2))) / 2


def gelu_tanh(z: Tensor) -> Tensor:
    return z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2


def silu(z: Tensor) -> Tensor:
    return z / (1 + torch.exp(-z))


def squared_relu(z: Tensor) -> Tensor:
    return z.clamp(min=0).square()


def halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Entry j turns with entry j + r/2, by tables (T, r); what is beyond r passes."""
    r = cos.shape[-1]
    first, second = x[..., : r // 2], x[..., r // 2 : r]
    c, s = cos[..., : r // 2], sin[..., : r // 2]
    return torch.cat([first * c - second * s, second * c + first * s, x[..., r:]], -1)


def pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Entry 2j turns with entry 2j + 1, by tables (T, r) that hold each angle twice."""
    r = cos.shape[-1]
    even, odd = x[..., 0:r:2], x[..., 1:r:2]
    c, s = cos[..., ::2], sin[..., ::2]
    turned = torch.stack([even * c - odd * s, odd * c + even * s], -1).flatten(-2)
    return torch.cat([turned, x[..., r:]], -1)


# ---- rows


def apart(layer: Any, row: Row, config: Any) -> tuple[Linear, Linear, Linear]:
    attention = at(layer, row.attention)
    return linear(attention.q_proj), linear(attention.k_proj), linear(attention.v_proj)


def thirds(layer: Any, row: Row, config: Any) -> tuple[Linear, ...]:
    weight, bias = conv1d(layer.attn.c_attn)
    return tuple(zip(weight.chunk(3), bias.chunk(3), strict=True))


def fused(layer: Any, row: Row, config: Any) -> tuple[Linear, ...]:
    width = config.hidden_size // config.num_attention_heads
    sizes = [n * width for n in (config.num_attention_heads, *[config.num_key_value_heads] * 2)]
    return tuple((part, None) for part in layer.self_attn.qkv_proj.weight.split(sizes))


def per_head(layer: Any, row: Row, config: Any) -> tuple[Linear, ...]:
    """Each head has its query, key and value in a row."""
    weight, bias = linear(layer.attention.query_key_value)
    heads, d = config.num_attention_heads, config.hidden_size
    by_head, biases = weight.view(heads, 3, -1, d), bias.view(heads, 3, -1)
    return tuple((by_head[:, i].reshape(-1, d), biases[:, i].reshape(-1)) for i in range(3))


def gate_up_apart(layer: Any, row: Row) -> tuple[Linear, Linear]:
    return linear(layer.mlp.gate_proj), linear(layer.mlp.up_proj)


def gate_up_fused(layer: Any, row: Row) -> tuple[Linear, ...]:
    return tuple((part, None) for part in layer.mlp.gate_up_proj.weight.chunk(2))


def by_width(config: Any, index: int) -> float:
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return float(width**-0.5)


def no_window(config: Any, index: int) -> int | None:
    return None


def window_by_type(config: Any, index: int) -> int | None:
    return config.sliding_window if config.layer_types[index] == "sliding_attention" else None


@dataclass(frozen=True)
class Row:
    """What a family computes, and where it keeps its weights.

    query_key    what is done to queries and keys (heads, T, d_head) or, `wide`, (T, heads·d_head), before they are turned
    gate_up      both maps of a gated MLP; one that is not has `up`
    """

    norm: Callable[..., Tensor] = rms
    eps: str = "rms_norm_eps"
    before: tuple[str | None, str | None] = ("input_layernorm", "post_attention_layernorm")
    post: tuple[str, str] | None = None
    attention: str = "self_attn"
    qkv: Callable[..., Any] = apart
    out: str = "self_attn.o_proj"
    read: Callable[[Any], Linear] = linear
    query_key: tuple[str, str] | None = None
    wide: bool = False
    rotary: Callable[..., Tensor] | None = halves
    turns: Callable[[Any, int], bool] = lambda config, index: True
    scale: Callable[[Any, int], float] = by_width
    cap: str | None = None
    window: Callable[[Any, int], int | None] = no_window
    gate_up: Callable[..., Any] | None = gate_up_apart
    up: str = ""
    down: str = "mlp.down_proj"
    act: Callable[[Tensor], Tensor] = silu
    parallel: Callable[[Any], bool] = lambda config: False
    multiplier: Callable[[Any], float] = lambda config: 1.0


def by_scalar(config: Any, index: int) -> float:
    return float(config.query_pre_attn_scalar**-0.5)


SHARED = ("input_layernorm", "input_layernorm")
SANDWICH: dict[str, Any] = {
    "before": ("input_layernorm", "pre_feedforward_layernorm"),
    "post": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "norm": rms_plus_one,
    "act": gelu_tanh,
    "scale": by_scalar,
    "window": window_by_type,
}
NEOX: dict[str, Any] = {
    "norm": layer_norm,
    "eps": "layer_norm_eps",
    "attention": "attention",
    "qkv": per_head,
    "out": "attention.dense",
    "gate_up": None,
    "up": "mlp.dense_h_to_4h",
    "down": "mlp.dense_4h_to_h",
    "act": gelu,
    "parallel": lambda config: config.use_parallel_residual,
}
ROWS = {
    "llama": Row(),
    "mistral": Row(window=lambda config, index: config.sliding_window),
    "qwen2": Row(window=window_by_type),
    "qwen3": Row(query_key=("q_norm", "k_norm")),
    "smollm3": Row(turns=lambda config, index: bool(config.no_rope_layers[index])),
    "granite": Row(
        scale=lambda config, index: config.attention_multiplier, multiplier=lambda config: config.residual_multiplier
    ),
    "gemma": Row(norm=rms_plus_one, act=gelu_tanh),
    "gemma2": Row(**SANDWICH, cap="attn_logit_softcapping"),
    "gemma3": Row(**SANDWICH, query_key=("q_norm", "k_norm")),
    "olmo2": Row(
        before=(None, None),
        post=("post_attention_layernorm", "post_feedforward_layernorm"),
        query_key=("q_norm", "k_norm"),
        wide=True,
    ),
    "phi": Row(
        norm=layer_norm, eps="layer_norm_eps", before=SHARED, out="self_attn.dense", gate_up=None, up="mlp.fc1",
        down="mlp.fc2", act=gelu_tanh, parallel=lambda config: True, query_key=("q_layernorm", "k_layernorm"),
    ),
    "phi3": Row(qkv=fused, gate_up=gate_up_fused, window=lambda config, index: config.sliding_window),
    "stablelm": Row(norm=layer_norm, eps="layer_norm_eps", query_key=("q_layernorm", "k_layernorm")),
    "stablelm-parallel": Row(norm=layer_norm, eps="layer_norm_eps", before=SHARED, parallel=lambda config: True),
    "cohere": Row(
        norm=layer_norm, eps="layer_norm_eps", before=SHARED, rotary=pairs, parallel=lambda config: True,
        query_key=("q_norm", "k_norm"),
    ),
    "starcoder2": Row(
        norm=layer_norm, eps="norm_epsilon", gate_up=None, up="mlp.c_fc", down="mlp.c_proj", act=gelu_tanh,
        window=lambda config, index: config.sliding_window,
    ),
    "nemotron": Row(norm=layer_norm_plus_one, eps="norm_eps", gate_up=None, up="mlp.up_proj", act=squared_relu),
    "gpt_neox": Row(**NEOX),
    "gpt_neox-in-turn": Row(**NEOX),
    "gpt2": Row(
        norm=layer_norm, eps="layer_norm_epsilon", before=("ln_1", "ln_2"), attention="attn", qkv=thirds,
        out="attn.c_proj", read=conv1d, rotary=None, scale=lambda config, index: by_width(config, index) / (index + 1),
        gate_up=None, up="mlp.c_fc", down="mlp.c_proj", act=gelu_tanh,
    ),
    "gptj": Row(
        norm=layer_norm, eps="layer_norm_epsilon", before=("ln_1", "ln_1"), attention="attn", out="attn.out_proj",
        rotary=pairs, gate_up=None, up="mlp.fc_in", down="mlp.fc_out", act=gelu_tanh, parallel=lambda config: True,
    ),
    "gpt_neo": Row(
        norm=layer_norm, eps="layer_norm_epsilon", before=("ln_1", "ln_2"), attention="attn.attention",
        out="attn.attention.out_proj", rotary=None, scale=lambda config, index: 1.0,
        window=lambda config, index: config.window_size if config.attention_layers[index] == "local" else None,
        gate_up=None, up="mlp.c_fc", down="mlp.c_proj", act=gelu_tanh,
    ),
}  # fmt: skip
"""By the names of `family_models.CASES`."""


# ---- layers


@dataclass(frozen=True)
class Oracle:
    """One layer, by its row; `tables` of rotary positions, cos and sin (T, r)."""

    row: Row
    config: Any
    layer: Any
    index: int
    tables: tuple[Tensor, Tensor] | None

    def _norm(self, x: Tensor, path: str | None) -> Tensor:
        if path is None:
            return x
        module = at(self.layer, path)
        return self.row.norm(x, module.weight, getattr(module, "bias", None), getattr(self.config, self.row.eps))

    def _normed_heads(self, x: Tensor, name: str) -> Tensor:
        """Queries or keys (heads, T, d_head) through their norms, one for all heads or each head's own."""
        module, eps = getattr(at(self.layer, self.row.attention), name), getattr(self.config, self.row.eps)
        if hasattr(module, "norms"):
            return torch.stack([self.row.norm(h, m.weight, m.bias, eps) for h, m in zip(x, module.norms, strict=True)])
        weight = module.weight if module.weight.ndim == 1 else module.weight[:, None]
        return self.row.norm(x, weight, getattr(module, "bias", None), eps)

    def _flat(self, h: Tensor) -> list[Tensor]:
        return [apply(map_, h) for map_ in self.row.qkv(self.layer, self.row, self.config)]

    def _query_key_value(self, h: Tensor) -> list[Tensor]:
        """(heads, T, d_head), keys and values repeated for the queries that share them."""
        row, config = self.row, self.config
        flat = self._flat(h)
        if row.query_key is not None and row.wide:
            flat[:2] = [self._norm(x, f"{row.attention}.{name}") for x, name in zip(flat, row.query_key, strict=False)]
        width = flat[0].shape[-1] // config.num_attention_heads
        found = [x.view(len(h), -1, width).transpose(0, 1) for x in flat]
        if row.query_key is not None and not row.wide:
            found[:2] = [self._normed_heads(x, name) for x, name in zip(found, row.query_key, strict=False)]
        if row.rotary is not None and row.turns(config, self.index):
            assert self.tables is not None
            found[:2] = [row.rotary(x, *self.tables) for x in found[:2]]
        return [x.repeat_interleave(config.num_attention_heads // len(x), 0) for x in found]

    def _mixed(self, h: Tensor) -> Tensor:
        """(heads, T, d_head)."""
        q, k, v = self._query_key_value(h)
        scores = self.row.scale(self.config, self.index) * q @ k.mT
        if self.row.cap is not None:
            cap = getattr(self.config, self.row.cap)
            scores = cap * torch.tanh(scores / cap)
        behind = torch.arange(len(h))[:, None] - torch.arange(len(h))
        window = self.row.window(self.config, self.index)
        seen = (behind >= 0) & (behind < (len(h) if window is None else window))
        weights = torch.where(seen, scores.exp(), 0.0)
        return weights / weights.sum(-1, keepdim=True) @ v

    def head(self, x: Tensor, head: int, norm: bool = True) -> Tensor:
        mixed = self._mixed(self._norm(x, self.row.before[0] if norm else None))[head]
        width = mixed.shape[-1]
        weight, _ = self.row.read(at(self.layer, self.row.out))
        return mixed @ weight[:, head * width : (head + 1) * width].T

    def attention(self, x: Tensor, norm: bool = True) -> Tensor:
        h = self._norm(x, self.row.before[0] if norm else None)
        mixed = self._mixed(h).transpose(0, 1).reshape(len(x), -1)
        return self._added(apply(self.row.read(at(self.layer, self.row.out)), mixed), 0, norm)

    def mlp(self, x: Tensor, norm: bool = True) -> Tensor:
        row = self.row
        h = self._norm(x, row.before[1] if norm else None)
        if row.gate_up is None:
            inner = row.act(apply(row.read(at(self.layer, row.up)), h))
        else:
            gate, up = (apply(map_, h) for map_ in row.gate_up(self.layer, row))
            inner = row.act(gate) * up
        return self._added(apply(row.read(at(self.layer, row.down)), inner), 1, norm)

    def _added(self, y: Tensor, which: int, norm: bool) -> Tensor:
        if not norm:
            return y
        if self.row.post is not None:
            y = self._norm(y, self.row.post[which])
        return y * self.row.multiplier(self.config)

    def whole(self, x: Tensor) -> Tensor:
        if self.row.parallel(self.config):
            return x + self.attention(x) + self.mlp(x)
        x = x + self.attention(x)
        return x + self.mlp(x)


def tables_of(attention: Any, call: Any) -> tuple[Tensor, Tensor] | None:
    """Cosines and sines (T, r) that the attention was handed, or, of GPT-J, that it keeps: each angle once."""
    if call.rotary is not None:
        return call.rotary
    if hasattr(attention, "embed_positions"):
        sin, cos = attention.embed_positions[: call.x.shape[1]].chunk(2, -1)
        return cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)
    return None
