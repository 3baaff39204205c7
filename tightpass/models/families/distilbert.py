"""DistilBERT: BERT's layers, under names of their own."""

from __future__ import annotations

from typing import Any

from tightpass.models.families.base import Family, Sites, register
from tightpass.models.options import KINDS


def sites(config: Any) -> Sites[str]:
    return Sites(
        context="attention",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        projection="attention.out_lin",
        up="ffn.lin1",
        act="ffn.activation",
        down="ffn.lin2",
        after_attn="sa_layer_norm",
        after_mlp="output_layer_norm",
    )


register(
    Family(
        model_types=("distilbert",),
        layers="transformer.layer",
        sites=sites,
        final_norm=None,
        head_size="attention_head_size",
        causal=lambda config: False,
        positions=lambda base: int(base.embeddings.position_embeddings.num_embeddings),
        closed=KINDS,
    )
)
