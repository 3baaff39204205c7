"""GPT-2: fused queries, keys and values in a Conv1D, which is a Linear with its weight transposed."""

from __future__ import annotations

from typing import Any

from tightpass.models.families.base import Family, Sites, register
from tightpass.models.options import KINDS


def sites(config: Any) -> Sites[str]:
    return Sites(
        context="attn",
        query_key_value="attn.c_attn",
        projection="attn.c_proj",
        up="mlp.c_fc",
        act="mlp.act",
        down="mlp.c_proj",
        attn_norm="ln_1",
        mlp_norm="ln_2",
    )


register(
    Family(
        model_types=("gpt2",),
        layers="h",
        sites=sites,
        final_norm="ln_f",
        head_size="head_dim",
        causal=lambda config: True,
        closed=KINDS,
    )
)
