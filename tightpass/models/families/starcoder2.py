"""StarCoder 2 and Nemotron: Llama's attention, and MLPs without a gate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tightpass.models.families import llama
from tightpass.models.families.base import Sites, register


def starcoder2(config: Any) -> Sites[str]:
    return replace(llama.sites(config), mlp=None, gate=None, up="mlp.c_fc", act="mlp.act", down="mlp.c_proj")


def nemotron(config: Any) -> Sites[str]:
    return replace(llama.sites(config), mlp=None, gate=None)


register(replace(llama.LLAMA, model_types=("starcoder2",), sites=starcoder2))
register(replace(llama.LLAMA, model_types=("nemotron",), sites=nemotron))
