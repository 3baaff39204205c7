"""Mixtral and the Qwen 3 mixtures: Llama's layers with an MLP of experts, of which a router takes some for each token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tightpass.models.families import llama
from tightpass.models.families.base import ABSENT, Family, Sites, register


def sites(config: Any) -> Sites[str]:
    return without_maps(llama.sites(config))


def without_maps(own: Sites[str]) -> Sites[str]:
    """With an MLP of experts, which have maps of their own."""
    return replace(own, gate=None, up=None, act=None, down=ABSENT)


def is_sparse(config: Any, index: int) -> bool:
    """Whether a Qwen layer has experts."""
    if index in config.mlp_only_layers or config.num_experts == 0:
        return False
    return bool((index + 1) % config.decoder_sparse_step == 0)


def qwen3_sites(config: Any, index: int) -> Sites[str]:
    own = llama.with_head_norms(config)
    return without_maps(own) if is_sparse(config, index) else own


MIXTRAL = Family(
    model_types=("mixtral",),
    layers="layers",
    sites=sites,
    final_norm="norm",
    head_size="head_dim",
    causal=lambda config: True,
    closed=("attn", "head"),
    units=lambda config: int(config.num_experts_per_tok * config.intermediate_size),
    unsaid=("d_ff",),
)
register(MIXTRAL)
register(
    replace(
        MIXTRAL,
        model_types=("qwen3_moe",),
        sites_of=qwen3_sites,
        units=lambda config: int(config.num_experts_per_tok * config.moe_intermediate_size),
    )
)
