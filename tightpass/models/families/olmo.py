"""OLMo 1: Llama's layers with norms that have no weights, and queries, keys and values that may be clipped."""

from __future__ import annotations

from tightpass.models.families import llama
from tightpass.models.families.base import Family, register

register(
    Family(
        model_types=("olmo",),
        layers="layers",
        sites=llama.sites,
        final_norm="norm",
        head_size="head_dim",
        causal=lambda config: True,
    )
)
