"""OLMo 2 and 3: no norms in front, but behind the branches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tightpass.models.families import llama
from tightpass.models.families.base import Family, Sites, register


def sites(config: Any) -> Sites[str]:
    return replace(
        llama.sites(config),
        attn_norm=None,
        attn_post="post_attention_layernorm",
        mlp_norm=None,
        mlp_post="post_feedforward_layernorm",
    )


register(
    Family(
        model_types=("olmo2", "olmo3"),
        layers="layers",
        sites=sites,
        final_norm="norm",
        head_size="head_dim",
        causal=lambda config: True,
    )
)
