"""LFM2: attention in some layers, a short convolution in the others."""

from __future__ import annotations

from typing import Any

from tightpass.models.families.base import Family, Sites, register

MLP = {"mlp": "feed_forward", "down": "feed_forward.w2", "attn_norm": "operator_norm", "mlp_norm": "ffn_norm"}


def sites(config: Any) -> Sites[str]:
    """Of a layer with attention."""
    return Sites(
        context="self_attn",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        projection="self_attn.out_proj",
        **MLP,
    )


def sites_of(config: Any, index: int) -> Sites[str]:
    return Sites(mixer="conv", **MLP) if config.layer_types[index] == "conv" else sites(config)


register(
    Family(
        model_types=("lfm2",),
        layers="layers",
        sites=sites,
        sites_of=sites_of,
        final_norm="embedding_norm",
        head_size="head_dim",
        causal=lambda config: True,
        unsaid=("d_ff",),
    )
)
