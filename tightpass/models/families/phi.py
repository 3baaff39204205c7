"""Phi-1 to 2: attention and MLP side by side behind one norm. Phi-3 and 4: Llama's layers, with fused maps."""

from __future__ import annotations

from typing import Any

from tightpass.models.families.base import Family, Sites, register
from tightpass.models.options import KINDS


def sites(config: Any) -> Sites[str]:
    return Sites(
        context="self_attn",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        projection="self_attn.dense",
        up="mlp.fc1",
        act="mlp.activation_fn",
        down="mlp.fc2",
        query_norm="self_attn.q_layernorm" if config.qk_layernorm else None,
        key_norm="self_attn.k_layernorm" if config.qk_layernorm else None,
        attn_norm="input_layernorm",
        mlp_norm="input_layernorm",
    )


def fused(config: Any) -> Sites[str]:
    return Sites(
        context="self_attn",
        query_key_value="self_attn.qkv_proj",
        projection="self_attn.o_proj",
        mlp="mlp",
        gate_up="mlp.gate_up_proj",
        act="mlp.activation_fn",
        down="mlp.down_proj",
        attn_norm="input_layernorm",
        mlp_norm="post_attention_layernorm",
    )


register(
    Family(
        model_types=("phi",),
        layers="layers",
        sites=sites,
        final_norm="final_layernorm",
        head_size="head_dim",
        causal=lambda config: True,
        parallel=lambda config: True,
        closed=KINDS,
    )
)
register(
    Family(
        model_types=("phi3",),
        layers="layers",
        sites=fused,
        final_norm="norm",
        head_size="head_dim",
        causal=lambda config: True,
        closed=KINDS,
    )
)
