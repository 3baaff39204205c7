"""DeBERTa 2 and 3: scores between contents and relative positions, in attention code of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tightpass.models.families import bert
from tightpass.models.families.base import Family, Sites, register


def sites(config: Any) -> Sites[str]:
    attention = "attention.self"
    return replace(
        bert.sites(config),
        query=f"{attention}.query_proj",
        key=f"{attention}.key_proj",
        value=f"{attention}.value_proj",
    )


register(
    Family(
        model_types=("deberta-v2",),
        layers="encoder.layer",
        sites=sites,
        final_norm=None,
        head_size="attention_head_size",
        causal=lambda config: False,
        own_attention=True,
    )
)
