"""Llama, and the families that are laid out like it: RMSNorm in front, grouped queries, gated MLP."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tightpass.models.families.base import Family, Sites, register
from tightpass.models.options import KINDS


def with_head_norms(config: Any) -> Sites[str]:
    return replace(sites(config), query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")


def sites(config: Any) -> Sites[str]:
    return Sites(
        context="self_attn",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        projection="self_attn.o_proj",
        mlp="mlp",
        gate="mlp.gate_proj",
        up="mlp.up_proj",
        act="mlp.act_fn",
        down="mlp.down_proj",
        attn_norm="input_layernorm",
        mlp_norm="post_attention_layernorm",
    )


LLAMA = Family(
    model_types=("llama", "mistral", "qwen2", "smollm3"),
    layers="layers",
    sites=sites,
    final_norm="norm",
    head_size="head_dim",
    causal=lambda config: True,
    closed=KINDS,
)
register(LLAMA)
register(replace(LLAMA, model_types=("qwen3",), sites=with_head_norms))
