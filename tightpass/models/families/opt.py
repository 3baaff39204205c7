"""OPT, every size; 350m alone has its norms on the residual sums."""

from __future__ import annotations

from typing import Any

from tightpass.models.families.base import Family, Sites, register
from tightpass.models.options import KINDS


def sites(config: Any) -> Sites[str]:
    before = config.do_layer_norm_before
    first, second = "self_attn_layer_norm", "final_layer_norm"  # the layer's own; the decoder's has the same name
    return Sites(
        context="self_attn",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        projection="self_attn.out_proj",
        up="fc1",
        act="activation_fn",
        down="fc2",
        attn_norm=first if before else None,
        mlp_norm=second if before else None,
        after_attn=None if before else first,
        after_mlp=None if before else second,
    )


def positions(base: Any) -> int:
    table = base.decoder.embed_positions
    return int(table.num_embeddings - table.offset)


register(
    Family(
        model_types=("opt",),
        layers="decoder.layers",
        sites=sites,
        final_norm="decoder.final_layer_norm",
        head_size="head_dim",
        causal=lambda config: True,
        positions=positions,
        closed=KINDS,
    )
)
