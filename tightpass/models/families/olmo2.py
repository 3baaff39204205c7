"""OLMo 2 and 3: no norms in front, but behind the branches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tightpass.models.families import llama
from tightpass.models.families.base import Sites, register


def sites(config: Any) -> Sites[str]:
    return replace(
        llama.with_head_norms(config),
        attn_norm=None,
        attn_post="post_attention_layernorm",
        mlp_norm=None,
        mlp_post="post_feedforward_layernorm",
    )


register(replace(llama.LLAMA, model_types=("olmo2", "olmo3"), sites=sites))
