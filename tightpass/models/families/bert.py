"""BERT-like encoders, and decoders of the same make."""

from __future__ import annotations

from typing import Any

from tightpass.models.families.base import Family, Sites, register
from tightpass.models.options import KINDS


def sites(config: Any) -> Sites[str]:
    return Sites(
        context="attention.self",
        query="attention.self.query",
        key="attention.self.key",
        value="attention.self.value",
        projection="attention.output.dense",
        up="intermediate.dense",
        act="intermediate.intermediate_act_fn",
        down="output.dense",
        after_attn="attention.output.LayerNorm",
        after_mlp="output.LayerNorm",
    )


register(
    Family(
        model_types=("bert",),
        layers="encoder.layer",
        sites=sites,
        final_norm=None,
        head_size="attention_head_size",
        causal=lambda config: bool(config.is_decoder),
        positions=lambda base: int(base.embeddings.position_embeddings.num_embeddings),
        unused=("pooler.",),
        closed=KINDS,
    )
)
