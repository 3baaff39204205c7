"""DeepSeek V3: queries, keys and values through latent vectors, and experts in groups beside a shared one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tightpass.models.families import llama, mixture
from tightpass.models.families.base import Family, Sites, register


def sites(config: Any) -> Sites[str]:
    return replace(mixture.sites(config), query=None, key=None, value=None)


def sites_of(config: Any, index: int) -> Sites[str]:
    dense = llama.sites(config).down if index < config.first_k_dense_replace else mixture.sites(config).down
    return replace(sites(config), down=dense)


def units(config: Any) -> int:
    return int(config.moe_intermediate_size * (config.num_experts_per_tok + config.n_shared_experts))


register(
    Family(
        model_types=("deepseek_v3",),
        layers="layers",
        sites=sites,
        sites_of=sites_of,
        final_norm="norm",
        head_size="v_head_dim",
        causal=lambda config: True,
        units=units,
        unsaid=("d_ff", "d_head"),
    )
)
