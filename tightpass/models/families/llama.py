"""Llama, and the families that are laid out like it: RMSNorm in front, grouped queries, gated MLP."""

from __future__ import annotations

from typing import Any

from tightpass.models.families.base import Family, Sites, register


def sites(config: Any) -> Sites[str]:
    return Sites(
        context="self_attn",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        projection="self_attn.o_proj",
        mlp="mlp",
        down="mlp.down_proj",
        attn_norm="input_layernorm",
        mlp_norm="post_attention_layernorm",
    )


register(
    Family(
        model_types=("llama", "mistral", "qwen2", "qwen3", "smollm3"),
        layers="layers",
        sites=sites,
        final_norm="norm",
        head_size="head_dim",
        causal=lambda config: True,
    )
)
