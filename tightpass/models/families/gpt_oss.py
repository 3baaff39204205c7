"""gpt-oss: attention with sinks, and experts whose units are clamped. Its MLP gives the router's scores as well."""

from __future__ import annotations

from typing import Any

from tightpass.models.families import mixture
from tightpass.models.families.base import Family, register


def units(config: Any) -> int:
    """An expert's bias, times the router's weight, is a unit too."""
    return int(config.num_experts_per_tok * (config.intermediate_size + 1))


register(
    Family(
        model_types=("gpt_oss",),
        layers="layers",
        sites=mixture.sites,
        final_norm="norm",
        head_size="head_dim",
        causal=lambda config: True,
        closed=("attn", "head"),
        units=units,
        unsaid=("d_ff",),
    )
)
