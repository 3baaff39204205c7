"""StarCoder 2 and Nemotron: Llama's attention, and MLPs without a gate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tightpass.models.families import llama
from tightpass.models.families.base import Family, Sites, register


def starcoder2(config: Any) -> Sites[str]:
    return replace(llama.sites(config), mlp=None, up="mlp.c_fc", act="mlp.act", down="mlp.c_proj")


def nemotron(config: Any) -> Sites[str]:
    return replace(llama.sites(config), mlp=None, up="mlp.up_proj", act="mlp.act_fn")


STARCODER2 = Family(
    model_types=("starcoder2",),
    layers="layers",
    sites=starcoder2,
    final_norm="norm",
    head_size="head_dim",
    causal=lambda config: True,
)
register(STARCODER2)
register(replace(STARCODER2, model_types=("nemotron",), sites=nemotron))
