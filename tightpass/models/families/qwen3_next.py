"""Qwen3-Next and Qwen 3.5: attention whose output is gated in some layers, a delta rule without heads in the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tightpass.models.families import llama, mixture
from tightpass.models.families.base import Family, Sites, register


def sites(config: Any) -> Sites[str]:
    """Of a layer with attention. Its queries share their map with the gate."""
    return replace(llama.sites(config), query=None)


def sites_of(config: Any, index: int) -> Sites[str]:
    if config.layer_types[index] == "full_attention":
        return sites(config)
    attention = llama.sites(config)
    return Sites(
        mixer="linear_attn",
        mlp=attention.mlp,
        gate=attention.gate,
        up=attention.up,
        act=attention.act,
        down=attention.down,
        attn_norm=attention.attn_norm,
        mlp_norm=attention.mlp_norm,
    )


def sparse_sites_of(config: Any, index: int) -> Sites[str]:
    found = sites_of(config, index)
    return mixture.without_maps(found) if mixture.is_sparse(config, index) else found


def units(config: Any) -> int:
    return int(config.num_experts_per_tok * config.moe_intermediate_size + config.shared_expert_intermediate_size)


DENSE = Family(
    model_types=("qwen3_5_text",),
    layers="layers",
    sites=sites,
    sites_of=sites_of,
    final_norm="norm",
    head_size="head_dim",
    causal=lambda config: True,
    closed=("mlp",),
)
register(DENSE)
register(
    replace(DENSE, model_types=("qwen3_next",), closed=(), sites_of=sparse_sites_of, units=units, unsaid=("d_ff",))
)
