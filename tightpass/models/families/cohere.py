"""Cohere's Command, both generations: attention and MLP side by side behind one norm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tightpass.models.families import llama
from tightpass.models.families.base import Family, Sites, register


def sites(config: Any) -> Sites[str]:
    return replace(llama.sites(config), mlp_norm="input_layernorm")


register(
    Family(
        model_types=("cohere", "cohere2"),
        layers="layers",
        sites=sites,
        final_norm="norm",
        head_size="head_dim",
        causal=lambda config: True,
        parallel=lambda config: True,
    )
)
