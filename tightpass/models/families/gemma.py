"""Gemma 1 to 3: norms with 1 + w; from the second on, norms behind the branches as well."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tightpass.models.families import llama
from tightpass.models.families.base import Family, Sites, register


def sandwich(config: Any) -> Sites[str]:
    return replace(
        llama.sites(config),
        attn_post="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_post="post_feedforward_layernorm",
    )


FIRST = Family(
    model_types=("gemma",),
    layers="layers",
    sites=llama.sites,
    final_norm="norm",
    head_size="head_dim",
    causal=lambda config: True,
)
register(FIRST)
register(
    replace(
        FIRST,
        model_types=("gemma2", "gemma3_text"),
        sites=sandwich,
        causal=lambda config: not getattr(config, "use_bidirectional_attention", False),
    )
)
