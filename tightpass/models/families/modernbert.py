"""ModernBERT: fused maps, gated MLP, and windows to either side in most layers; the first has no norm before attention."""

from __future__ import annotations

from typing import Any

from tightpass.models.families.base import Family, Sites, register
from tightpass.models.options import KINDS


def sites(config: Any) -> Sites[str]:
    return Sites(
        context="attn",
        query_key_value="attn.Wqkv",
        projection="attn.Wo",
        mlp="mlp",
        gate_up="mlp.Wi",
        act="mlp.act",
        down="mlp.Wo",
        attn_norm="attn_norm",
        mlp_norm="mlp_norm",
    )


register(
    Family(
        model_types=("modernbert",),
        layers="layers",
        sites=sites,
        final_norm="final_norm",
        head_size="head_dim",
        causal=lambda config: False,
        closed=KINDS,
    )
)
