"""GPT-J: attention and MLP side by side behind one norm, in attention code of its own."""

from __future__ import annotations

from typing import Any

from tightpass.models.families.base import Family, OwnScores, Sites, register
from tightpass.models.options import KINDS


def sites(config: Any) -> Sites[str]:
    return Sites(
        context="attn",
        query="attn.q_proj",
        key="attn.k_proj",
        value="attn.v_proj",
        projection="attn.out_proj",
        up="mlp.fc_in",
        act="mlp.act",
        down="mlp.fc_out",
        attn_norm="ln_1",
        mlp_norm="ln_1",
    )


def scores(module: Any, tokens: int) -> OwnScores:
    """Neighbours turn together; sines come first in its table, each angle once."""
    sin, cos = module.embed_positions[:tokens].to(module.k_proj.weight.dtype).repeat_interleave(2, -1).chunk(2, -1)
    return OwnScores(scale=1 / module.scale_attn, tables=(cos, sin))


register(
    Family(
        model_types=("gptj",),
        layers="h",
        sites=sites,
        final_norm="ln_f",
        head_size="head_dim",
        causal=lambda config: True,
        parallel=lambda config: True,
        closed=KINDS,
        own_attention=True,
        own_scores=scores,
    )
)
