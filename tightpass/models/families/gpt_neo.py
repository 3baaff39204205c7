"""GPT-Neo: unscaled scores, every other layer with a window, all in attention code of its own."""

from __future__ import annotations

from typing import Any

from tightpass.models.families.base import Family, OwnScores, Sites, register
from tightpass.models.options import KINDS


def sites(config: Any) -> Sites[str]:
    return Sites(
        context="attn.attention",
        query="attn.attention.q_proj",
        key="attn.attention.k_proj",
        value="attn.attention.v_proj",
        projection="attn.attention.out_proj",
        up="mlp.c_fc",
        act="mlp.act",
        down="mlp.c_proj",
        attn_norm="ln_1",
        mlp_norm="ln_2",
    )


def scores(module: Any, tokens: int) -> OwnScores:
    """Its triangle is a buffer, in every other layer a band of it."""
    return OwnScores(scale=1.0, allowed=module.bias[0, :, :tokens, :tokens])


register(
    Family(
        model_types=("gpt_neo",),
        layers="h",
        sites=sites,
        final_norm="ln_f",
        head_size="head_dim",
        causal=lambda config: True,
        closed=KINDS,
        own_attention=True,
        own_scores=scores,
    )
)
