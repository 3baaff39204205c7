"""Falcon: attention and MLP side by side, behind one norm (7b) or two (40b), or in turn (rw).

Its eager attention adds ALiBi twice, the one that models are loaded with once: that one is taken.
"""

from __future__ import annotations

from typing import Any

from tightpass.models.families.base import Family, Sites, register


def is_parallel(config: Any) -> bool:
    return bool(config.new_decoder_architecture or config.parallel_attn)


def norms(config: Any) -> tuple[str, str]:
    """In front of attention and MLP."""
    if not config.parallel_attn:
        return "input_layernorm", "post_attention_layernorm"
    two = config.num_ln_in_parallel_attn
    if two == 2 or (two is None and config.new_decoder_architecture):
        return "ln_attn", "ln_mlp"
    return "input_layernorm", "input_layernorm"


def sites(config: Any) -> Sites[str]:
    attn_norm, mlp_norm = norms(config)
    return Sites(
        context="self_attention",
        projection="self_attention.dense",
        up="mlp.dense_h_to_4h",
        act="mlp.act",
        down="mlp.dense_4h_to_h",
        attn_norm=attn_norm,
        mlp_norm=mlp_norm,
    )


def groups(config: Any) -> int:
    if config.new_decoder_architecture:
        return int(config.num_attention_heads // config.num_kv_heads)
    return int(config.num_attention_heads) if config.multi_query else 1


register(
    Family(
        model_types=("falcon",),
        layers="h",
        sites=sites,
        final_norm="ln_f",
        head_size="head_dim",
        causal=lambda config: True,
        parallel=is_parallel,
        own_attention=True,
        implementation="sdpa",
        groups=groups,
    )
)
