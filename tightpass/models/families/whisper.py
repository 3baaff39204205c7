"""The encoder of Whisper: OPT's layers, on frames of sound."""

from __future__ import annotations

from typing import Any

from tightpass.models.families.base import Family, Sites, register
from tightpass.models.options import KINDS
from tightpass.models.signal import Signal

STRIDE = 2
"""Columns of the spectrogram to a token."""


def sites(config: Any) -> Sites[str]:
    return Sites(
        context="self_attn",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        projection="self_attn.out_proj",
        up="fc1",
        act="activation_fn",
        down="fc2",
        attn_norm="self_attn_layer_norm",
        mlp_norm="final_layer_norm",
    )


def frames(config: Any) -> Signal:
    return Signal("input_features", (config.num_mel_bins, STRIDE * config.max_source_positions), (STRIDE,))


register(
    Family(
        model_types=("whisper",),
        tower="encoder",
        layers="layers",
        sites=sites,
        final_norm="layer_norm",
        head_size="head_dim",
        causal=lambda config: False,
        positions=lambda base: int(base.embed_positions.num_embeddings),
        closed=KINDS,
        reads=frames,
    )
)
