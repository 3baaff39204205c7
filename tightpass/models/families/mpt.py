"""MPT: ALiBi, norms without bias, and an MLP that adds the residual itself."""

from __future__ import annotations

from typing import Any

from tightpass.models.families.base import Family, Sites, register


def sites(config: Any) -> Sites[str]:
    return Sites(
        context="attn",
        projection="attn.out_proj",
        up="ffn.up_proj",
        act="ffn.act",
        down="ffn.down_proj",
        attn_norm="norm_1",
        mlp_norm="norm_2",
    )


register(
    Family(
        model_types=("mpt",),
        layers="blocks",
        sites=sites,
        final_norm="norm_f",
        head_size="head_dim",
        causal=lambda config: True,
        positions=lambda base: int(base.config.max_seq_len),
        own_attention=True,
    )
)
