"""Phi-1 to 2: attention and MLP side by side behind one norm. Phi-3 and 4: Llama's layers, with fused maps."""

from __future__ import annotations

from typing import Any

from tightpass.models.families.base import Family, Sites, register


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
        attn_norm="input_layernorm",
        mlp_norm="input_layernorm",
    )


def fused(config: Any) -> Sites[str]:
    return Sites(
        context="self_attn",
        projection="self_attn.o_proj",
        mlp="mlp",
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
    )
)
