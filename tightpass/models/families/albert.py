"""ALBERT: few layers, each applied many times; the norm on the sum after attention lies inside the attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tightpass.models.families.base import Family, Sites, register
from tightpass.models.options import KINDS


def sites(config: Any) -> Sites[str]:
    return Sites(
        context="attention",
        query="attention.query",
        key="attention.key",
        value="attention.value",
        projection="attention.dense",
        up="ffn",
        act="activation",
        down="ffn_output",
        after_attn="attention.LayerNorm",
        after_mlp="full_layer_layer_norm",
    )


def applied(groups: Any, config: Any) -> Iterator[Any]:
    """The layers of a group, and so often that there are as many groups as the configuration says layers."""
    count = config.num_hidden_layers
    for i in range(count):
        yield from groups[i * len(groups) // count].albert_layers


register(
    Family(
        model_types=("albert",),
        layers="encoder.albert_layer_groups",
        sites=sites,
        final_norm=None,
        head_size="attention_head_size",
        causal=lambda config: False,
        positions=lambda base: int(base.embeddings.position_embeddings.num_embeddings),
        unused=("pooler.",),
        closed=KINDS,
        applied=applied,
    )
)
