"""Granite: Llama's layers, with a multiplier on what each branch adds."""

from __future__ import annotations

from tightpass.models.families import llama
from tightpass.models.families.base import Family, register

register(
    Family(
        model_types=("granite",),
        layers="layers",
        sites=llama.sites,
        final_norm="norm",
        head_size="head_dim",
        causal=lambda config: True,
        scale=lambda config: float(config.residual_multiplier),
    )
)
