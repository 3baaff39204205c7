"""The layers of those decoders, in plain torch. Joins `family_oracles.ROWS`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from oracles.family_oracles import (
    ROWS,
    SHARED,
    Linear,
    Oracle,
    Row,
    Tensor,
    apart,
    apply,
    at,
    by_width,
    gelu,
    halves,
    layer_norm,
    linear,
    pairs,
    rms,
    rms_plus_one,
    silu,
    window_by_type,
)


def sigmoid(z: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-z))


# ---- queries, keys and values


def fused_groups(count: Callable[[Any], tuple[int, int]]) -> Callable[..., tuple[Linear, ...]]:
    """Groups of (queries, key, value), so many groups of so many queries."""

    def split(layer: Any, row: Row, config: Any) -> tuple[Linear, ...]:
        weight, bias = linear(at(layer, row.attention).query_key_value)
        groups, queries = count(config)
        d = config.hidden_size // config.num_attention_heads
        W, b = weight.view(groups, queries + 2, d, -1), bias.view(groups, queries + 2, d)
        places = slice(0, queries), slice(queries, queries + 1), slice(queries + 1, queries + 2)
        return tuple((W[:, at_].reshape(-1, W.shape[-1]), b[:, at_].reshape(-1)) for at_ in places)

    return split


def thirds_of_one(layer: Any, row: Row, config: Any) -> tuple[Linear, ...]:
    return tuple((part, None) for part in layer.attn.Wqkv.weight.chunk(3))


def first_of_each_head(layer: Any, row: Row, config: Any) -> tuple[Linear, ...]:
    """Each head's query stands before its gate."""
    (weight, bias), key, value = apart(layer, row, config)
    by_head = weight.view(config.num_attention_heads, 2, -1, weight.shape[-1])
    return (by_head[:, 0].flatten(0, 1), bias.view(config.num_attention_heads, 2, -1)[:, 0].flatten()), key, value


def gate_of_each_head(layer: Any, config: Any, h: Tensor) -> Tensor:
    """(heads, T, d_head)."""
    z = apply(linear(layer.self_attn.q_proj), h).view(len(h), config.num_attention_heads, 2, -1)[:, :, 1]
    return sigmoid(z).transpose(0, 1)


def halves_once(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """By tables that hold each angle once."""
    return halves(x, torch.cat([cos, cos], -1), torch.cat([sin, sin], -1))


def pairs_of_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs, by tables that hold all angles and then all again."""
    cos, sin = (table[..., : table.shape[-1] // 2].repeat_interleave(2, -1) for table in (cos, sin))
    return pairs(x, cos, sin)


def alibi(config: Any, tokens: int) -> Tensor:
    """Of three heads, (3, 1, T): of the slopes of a power of two heads those of the next are put between."""
    assert config.num_attention_heads == 3
    return torch.tensor([2.0**-4, 2.0**-8, 2.0**-2], dtype=torch.float64)[:, None, None] * torch.arange(tokens)


# ---- experts


def chosen(scores: Tensor, count: int) -> Tensor:
    """1 where a score is among the largest of its row."""
    least = scores.detach().sort(-1, descending=True).values[..., count - 1 : count]
    return (scores.detach() >= least).to(scores)


def gated(gate: Tensor, up: Tensor, down: Tensor, h: Tensor) -> Tensor:
    return (silu(h @ gate.T) * (h @ up.T)) @ down.T


def gated_mlp(mlp: Any, h: Tensor) -> Tensor:
    return gated(mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight, h)


def weighted(experts: Any, weights: Tensor, h: Tensor) -> Tensor:
    """Σ_e weights (T, E) · expert e of h."""
    each = [gated(*both.chunk(2), down, h) for both, down in zip(experts.gate_up_proj, experts.down_proj, strict=True)]
    return torch.stack([weights[:, e, None] * y for e, y in enumerate(each)]).sum(0)


def by_softmax(normalised: Callable[[Any], bool]) -> Callable[..., Tensor]:
    def mixture(mlp: Any, config: Any, h: Tensor) -> Tensor:
        p = (h @ mlp.gate.weight.T).exp()
        p = p / p.sum(-1, keepdim=True)
        p = p * chosen(p, config.num_experts_per_tok)
        return weighted(mlp.experts, p / p.sum(-1, keepdim=True) if normalised(config) else p, h)

    return mixture


def beside_shared(mlp: Any, config: Any, h: Tensor) -> Tensor:
    routed = by_softmax(lambda config: config.norm_topk_prob)(mlp, config, h)
    return routed + sigmoid(h @ mlp.shared_expert_gate.weight.T) * gated_mlp(mlp.shared_expert, h)


def in_groups(mlp: Any, config: Any, h: Tensor) -> Tensor:
    """Of the experts of the best groups, by their two best, the best; a bias takes part in the choice alone."""
    s = sigmoid(h @ mlp.gate.weight.T)
    biased = (s + mlp.gate.e_score_correction_bias).unflatten(-1, (config.n_group, -1))
    best = biased.sort(-1, descending=True).values[..., :2].sum(-1)
    open_ = chosen(best, config.topk_group)[..., None].expand_as(biased).flatten(-2)
    w = s * chosen(torch.where(open_ > 0, biased.flatten(-2), -torch.inf), config.num_experts_per_tok)
    w = w / w.sum(-1, keepdim=True) if config.norm_topk_prob else w
    return config.routed_scaling_factor * weighted(mlp.experts, w, h) + gated_mlp(mlp.shared_experts, h)


def clamped(mlp: Any, config: Any, h: Tensor) -> Tensor:
    experts, limit = mlp.experts, config.swiglu_limit
    logits = apply(linear(mlp.router), h)
    w = logits.exp() * chosen(logits, config.num_experts_per_tok)
    w, total = w / w.sum(-1, keepdim=True), torch.zeros_like(h)
    for e in range(config.num_local_experts):
        z = h @ experts.gate_up_proj[e] + experts.gate_up_proj_bias[e]
        gate, up = z[:, ::2], z[:, 1::2]
        gate = torch.where(gate > limit, limit, gate)
        up = torch.where(up > limit, limit, torch.where(up < -limit, -limit, up))
        inner = (up + 1) * gate * sigmoid(config.swiglu_alpha * gate)
        total = total + w[:, e, None] * (inner @ experts.down_proj[e] + experts.down_proj_bias[e])
    return total


# ---- what mixes tokens without attention


def causal_convolution(weight: Tensor, x: Tensor) -> Tensor:
    """Σ_j weight (d, K) [:, j] · x (T, d) of token t − (K − 1) + j."""
    K, T = weight.shape[-1], len(x)
    padded = torch.cat([x.new_zeros(K - 1, x.shape[1]), x])
    return torch.stack([weight[:, j] * padded[j : j + T] for j in range(K)]).sum(0)


def short_convolution(layer: Any, config: Any, h: Tensor) -> Tensor:
    conv = layer.conv
    B, C, x = apply(linear(conv.in_proj), h).chunk(3, -1)
    return apply(linear(conv.out_proj), C * (causal_convolution(conv.conv.weight[:, 0], B * x) + conv.conv.bias))


def delta_inputs_fused(mixer: Any, config: Any, h: Tensor) -> tuple[Tensor, ...]:
    """Of Qwen3-Next: each key head's query, key, values and gates in a row; q, k, v (T, ·), z, b, a."""
    T, heads = len(h), config.linear_num_key_heads
    each = (h @ mixer.in_proj_qkvz.weight.T).view(T, heads, -1)
    d, more = config.linear_key_head_dim, config.linear_num_value_heads // heads
    q, k, v, z = each.split([d, d, *[more * config.linear_value_head_dim] * 2], -1)
    b, a = (h @ mixer.in_proj_ba.weight.T).view(T, heads, -1).split([more, more], -1)
    return tuple(x.reshape(T, -1) for x in (q, k, v, z, b, a))


def delta_inputs_apart(mixer: Any, config: Any, h: Tensor) -> tuple[Tensor, ...]:
    keys = config.linear_num_key_heads * config.linear_key_head_dim
    q, k, v = (h @ mixer.in_proj_qkv.weight.T).tensor_split([keys, 2 * keys], -1)
    z, b, a = (h @ at(mixer, name).weight.T for name in ("in_proj_z", "in_proj_b", "in_proj_a"))
    return q, k, v, z, b, a


def delta_rule(inputs: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Tensor]:
    """S ← e^g·S; S ← S + β·k ⊗ (v − Sᵀk); o = Sᵀq, token by token."""

    def mixed(layer: Any, config: Any, h: Tensor) -> Tensor:
        mixer, T = layer.linear_attn, len(h)
        *qkv, z, b, a = inputs(mixer, config, h)
        convolved = silu(causal_convolution(mixer.conv1d.weight[:, 0], torch.cat(qkv, -1)))
        q, k, v = convolved.split([x.shape[-1] for x in qkv], -1)
        heads = config.linear_num_value_heads
        v, z = v.view(T, heads, -1), z.view(T, heads, -1)
        more = heads // config.linear_num_key_heads
        q, k = (_unit(x.view(T, config.linear_num_key_heads, -1)).repeat_interleave(more, 1) for x in (q, k))
        q, beta = q / math.sqrt(q.shape[-1]), sigmoid(b)
        decay = torch.exp(-mixer.A_log.exp() * torch.log(1 + torch.exp(a + mixer.dt_bias)))
        S, out = h.new_zeros(heads, k.shape[-1], v.shape[-1]), []
        for t in range(T):
            S = decay[t, :, None, None] * S
            told = v[t] - torch.einsum("hkv,hk->hv", S, k[t])
            S = S + beta[t, :, None, None] * k[t, :, :, None] * told[:, None]
            out.append(torch.einsum("hkv,hk->hv", S, q[t]))
        y = rms(torch.stack(out), mixer.norm.weight, None, config.rms_norm_eps) * silu(z)
        return y.reshape(T, -1) @ mixer.out_proj.weight.T

    return mixed


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


# ---- rows


@dataclass(frozen=True)
class DecoderRow(Row):
    """unweighted   norms have neither weights nor an epsilon of their own
    clip         queries, keys and values beyond are cut off
    bias         (heads, T or 1, T), added to scores
    gate         of what each head gives
    experts      what an MLP of experts gives
    mixer        of a layer without attention
    """

    unweighted: bool = False
    clip: Callable[[Any], float | None] = lambda config: None
    bias: Callable[[Any, int], Tensor] | None = None
    sinks: bool = False
    gate: Callable[..., Tensor] | None = None
    experts: Callable[..., Tensor] | None = None
    mixer: Callable[..., Tensor] | None = None


class DecoderOracle(Oracle):
    row: DecoderRow

    def _norm(self, x: Tensor, path: str | None) -> Tensor:
        if self.row.unweighted and path is not None:
            return layer_norm(x, torch.ones_like(x[0]), None, 1e-5)
        return super()._norm(x, path)

    def _flat(self, h: Tensor) -> list[Tensor]:
        limit, found = self.row.clip(self.config), super()._flat(h)
        if limit is None:
            return found
        return [torch.where(x > limit, limit, torch.where(x < -limit, -limit, x)) for x in found]

    def _mixed(self, h: Tensor) -> Tensor:
        row, config = self.row, self.config
        q, k, v = self._query_key_value(h)
        scores = row.scale(config, self.index) * q @ k.mT
        scores = scores if row.bias is None else scores + row.bias(config, len(h))
        behind = torch.arange(len(h))[:, None] - torch.arange(len(h))
        window = row.window(config, self.index)
        e = torch.where((behind >= 0) & (behind < (len(h) if window is None else window)), scores.exp(), 0.0)
        total = e.sum(-1, keepdim=True)
        total = total + at(self.layer, row.attention).sinks.exp()[:, None, None] if row.sinks else total
        mixed = e / total @ v
        return mixed if row.gate is None else mixed * row.gate(self.layer, config, h)

    def attention(self, x: Tensor, norm: bool = True) -> Tensor:
        if self.row.mixer is None or hasattr(self.layer, self.row.attention):
            return super().attention(x, norm)
        return self.row.mixer(self.layer, self.config, self._norm(x, self.row.before[0]))

    def mlp(self, x: Tensor, norm: bool = True) -> Tensor:
        if self.row.experts is None or not hasattr(self.layer.mlp, "experts"):
            return super().mlp(x, norm)
        h = self._norm(x, self.row.before[1] if norm else None)
        return self._added(self.row.experts(self.layer.mlp, self.config, h), 1, norm)


class LatentOracle(DecoderOracle):
    """DeepSeek's attention."""

    def _query_key_value(self, h: Tensor) -> list[Tensor]:
        attention, config, H = self.layer.self_attn, self.config, self.config.num_attention_heads
        nope, turned = config.qk_nope_head_dim, config.qk_rope_head_dim
        if config.q_lora_rank is None:
            q = apply(linear(attention.q_proj), h)
        else:
            q = apply(linear(attention.q_a_proj), h)
            q = apply(linear(attention.q_b_proj), rms(q, attention.q_a_layernorm.weight, None, 1e-6))
        latent, k_turned = apply(linear(attention.kv_a_proj_with_mqa), h).tensor_split([config.kv_lora_rank], -1)
        both = apply(linear(attention.kv_b_proj), rms(latent, attention.kv_a_layernorm.weight, None, 1e-6))
        q, both = (x.view(len(h), H, -1).transpose(0, 1) for x in (q, both))
        turn = pairs_of_halves if config.rope_interleave else halves
        assert self.tables is not None
        q = torch.cat([q[..., :nope], turn(q[..., nope:], *self.tables)], -1)
        k_turned = turn(k_turned[None], *self.tables).expand(H, len(h), turned)
        return [q, torch.cat([both[..., :nope], k_turned], -1), both[..., nope:]]


@dataclass(frozen=True)
class LatentRow(DecoderRow):
    pass


def oracle_for(row: Row) -> type[Oracle]:
    if isinstance(row, LatentRow):
        return LatentOracle
    return DecoderOracle if isinstance(row, DecoderRow) else Oracle


def bloom_gelu(z: Tensor) -> Tensor:
    """With the constant as BLOOM rounds it."""
    return z * (1 + torch.tanh(0.79788456 * (z + 0.044715 * z**3))) / 2


def by_scale(config: Any, index: int) -> float:
    return float(config.attn_config.softmax_scale)


def scaled_alibi(config: Any, tokens: int) -> Tensor:
    """Falcon scales it as it scales products."""
    return alibi(config, tokens) * by_width(config, 0)


BESIDE = {"parallel": lambda config: True}
FALCON: dict[str, Any] = {
    "norm": layer_norm,
    "eps": "layer_norm_epsilon",
    "attention": "self_attention",
    "out": "self_attention.dense",
    "gate_up": None,
    "up": "mlp.dense_h_to_4h",
    "down": "mlp.dense_4h_to_h",
    "act": gelu,
}
ONE = fused_groups(lambda config: (1, config.num_attention_heads))
SOME = fused_groups(lambda config: (config.num_kv_heads, config.num_attention_heads // config.num_kv_heads))
EACH = fused_groups(lambda config: (config.num_attention_heads, 1))
LATENT = LatentRow(
    scale=lambda config, index: (config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5, experts=in_groups
)
DELTA: dict[str, Any] = {
    "norm": rms_plus_one, "query_key": ("q_norm", "k_norm"), "qkv": first_of_each_head, "gate": gate_of_each_head,
}  # fmt: skip
QWEN3 = DecoderRow(query_key=("q_norm", "k_norm"), experts=by_softmax(lambda config: config.norm_topk_prob))
ROWS |= {
    "mixtral": DecoderRow(
        window=lambda config, index: config.sliding_window, experts=by_softmax(lambda config: True)
    ),
    "qwen3_moe": QWEN3,
    "qwen3_moe-plain": QWEN3,
    "olmo": DecoderRow(unweighted=True, clip=lambda config: config.clip_qkv),
    "olmo3": DecoderRow(
        before=(None, None), post=("post_attention_layernorm", "post_feedforward_layernorm"),
        query_key=("q_norm", "k_norm"), wide=True, window=window_by_type,
    ),
    "cohere2": DecoderRow(
        norm=layer_norm, eps="layer_norm_eps", before=SHARED, rotary=pairs, window=window_by_type, **BESIDE,
        turns=lambda config, index: config.layer_types[index] == "sliding_attention",
    ),
    "deepseek": LATENT,
    "deepseek-plain": LATENT,
    "gpt_oss": DecoderRow(rotary=halves_once, sinks=True, window=window_by_type, experts=clamped),
    "falcon-7b": DecoderRow(**FALCON, **BESIDE, before=SHARED, qkv=ONE),
    "falcon-40b": DecoderRow(**FALCON, **BESIDE, before=("ln_attn", "ln_mlp"), qkv=SOME),
    "falcon-11b": DecoderRow(**FALCON, **BESIDE, before=SHARED, qkv=SOME),
    "falcon-rw": DecoderRow(**FALCON, qkv=EACH, rotary=None, bias=scaled_alibi),
    "bloom": DecoderRow(**FALCON | {"act": bloom_gelu}, qkv=EACH, rotary=None, bias=alibi),
    "mpt": DecoderRow(
        norm=layer_norm, eps="layer_norm_epsilon", before=("norm_1", "norm_2"), attention="attn", qkv=thirds_of_one,
        out="attn.out_proj", rotary=None, scale=by_scale, bias=alibi, gate_up=None, up="ffn.up_proj",
        down="ffn.down_proj", act=gelu, clip=lambda config: config.attn_config.clip_qkv,
    ),
    "qwen3_next": DecoderRow(**DELTA, experts=beside_shared, mixer=delta_rule(delta_inputs_fused)),
    "qwen3_5": DecoderRow(**DELTA, mixer=delta_rule(delta_inputs_apart)),
    "lfm2": DecoderRow(
        eps="norm_eps", before=("operator_norm", "ffn_norm"), out="self_attn.out_proj",
        query_key=("q_layernorm", "k_layernorm"), down="feed_forward.w2", mixer=short_convolution,
        gate_up=lambda layer, row: (linear(layer.feed_forward.w1), linear(layer.feed_forward.w3)),
    ),
}  # fmt: skip
