"""GPT-NeoX, such as Pythia: attention and MLP side by side or in turn, each behind its own norm."""

from __future__ import annotations

from typing import Any

from tightpass.models.families.base import Family, Sites, register
from tightpass.models.options import KINDS


def sites(config: Any) -> Sites[str]:
    return Sites(
        context="attention",
        query_key_value="attention.query_key_value",
        projection="attention.dense",
        up="mlp.dense_h_to_4h",
        act="mlp.act",
        down="mlp.dense_4h_to_h",
        attn_norm="input_layernorm",
        mlp_norm="post_attention_layernorm",
    )


register(
    Family(
        model_types=("gpt_neox",),
        layers="layers",
        sites=sites,
        final_norm="final_layer_norm",
        head_size="head_size",
        causal=lambda config: True,
        parallel=lambda config: bool(config.use_parallel_residual),
        closed=KINDS,
        by_head=True,
    )
)
