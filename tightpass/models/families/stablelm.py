"""StableLM: Llama's layers with LayerNorms, or attention and MLP side by side behind one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tightpass.models.families import llama
from tightpass.models.families.base import Family, Sites, register


def sites(config: Any) -> Sites[str]:
    in_turn = llama.sites(config)
    return replace(in_turn, mlp_norm=in_turn.attn_norm) if config.use_parallel_residual else in_turn


register(
    Family(
        model_types=("stablelm",),
        layers="layers",
        sites=sites,
        final_norm="norm",
        head_size="head_dim",
        causal=lambda config: True,
        parallel=lambda config: bool(config.use_parallel_residual),
    )
)
