"""BERT-like encoders, and decoders of the same make: BERT, Electra, and RoBERTa, whose positions begin behind that of padding."""

from __future__ import annotations

from dataclasses import replace
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


def positions(base: Any) -> int:
    return int(base.embeddings.position_embeddings.num_embeddings)


def up_to_padding(config: Any) -> int:
    return int(config.pad_token_id) + 1


BERT = Family(
    model_types=("bert", "electra"),
    layers="encoder.layer",
    sites=sites,
    final_norm=None,
    head_size="attention_head_size",
    causal=lambda config: bool(config.is_decoder),
    positions=positions,
    unused=("pooler.",),
    closed=KINDS,
)
register(BERT)
register(
    replace(
        BERT,
        model_types=("roberta",),
        positions=lambda base: positions(base) - up_to_padding(base.config),
        unnumbered=up_to_padding,
    )
)
