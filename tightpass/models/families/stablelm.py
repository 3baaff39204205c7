"""StableLM: Llama's layers with LayerNorms, or attention and MLP side by side behind one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tightpass.models.families import llama
from tightpass.models.families.base import Sites, register


def sites(config: Any) -> Sites[str]:
    in_turn = llama.sites(config)
    if config.qk_layernorm:
        in_turn = replace(in_turn, query_norm="self_attn.q_layernorm", key_norm="self_attn.k_layernorm")
    return replace(in_turn, mlp_norm=in_turn.attn_norm) if config.use_parallel_residual else in_turn


register(
    replace(
        llama.LLAMA,
        model_types=("stablelm",),
        sites=sites,
        parallel=lambda config: bool(config.use_parallel_residual),
    )
)
