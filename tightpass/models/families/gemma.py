"""Gemma 1 to 3: norms with 1 + w; from the second on, norms behind the branches as well."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tightpass.models.families import llama
from tightpass.models.families.base import Sites, register


def sandwich(config: Any) -> Sites[str]:
    return replace(
        llama.sites(config),
        attn_post="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_post="post_feedforward_layernorm",
    )


def with_head_norms(config: Any) -> Sites[str]:
    return replace(sandwich(config), query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")


register(replace(llama.LLAMA, model_types=("gemma",)))
SECOND = replace(
    llama.LLAMA,
    model_types=("gemma2",),
    sites=sandwich,
    causal=lambda config: not getattr(config, "use_bidirectional_attention", False),
)
register(SECOND)
register(replace(SECOND, model_types=("gemma3_text",), sites=with_head_norms))
