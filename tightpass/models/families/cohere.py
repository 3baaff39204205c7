"""Cohere's Command, both generations: attention and MLP side by side behind one norm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tightpass.models.families import llama
from tightpass.models.families.base import Sites, register


def sites(config: Any) -> Sites[str]:
    own = llama.with_head_norms(config) if getattr(config, "use_qk_norm", False) else llama.sites(config)
    return replace(own, mlp_norm=own.attn_norm)


register(replace(llama.LLAMA, model_types=("cohere", "cohere2"), sites=sites, parallel=lambda config: True))
