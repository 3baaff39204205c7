"""The encoder of T5: relative positions as a bias on unscaled scores, MLPs with a gate or without."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tightpass.models.families.base import Family, Sites, register
from tightpass.models.options import KINDS

UNLIMITED = 2**31 - 1
"""Positions, where all that are far are alike."""


def sites(config: Any) -> Sites[str]:
    attention, mlp = "layer.0.SelfAttention", "layer.1.DenseReluDense"
    plain = Sites(
        context=attention,
        query=f"{attention}.q",
        key=f"{attention}.k",
        value=f"{attention}.v",
        projection=f"{attention}.o",
        up=f"{mlp}.wi",
        act=f"{mlp}.act",
        down=f"{mlp}.wo",
        attn_norm="layer.0.layer_norm",
        mlp_norm="layer.1.layer_norm",
    )
    return replace(plain, mlp=mlp, gate=f"{mlp}.wi_0", up=f"{mlp}.wi_1") if config.is_gated_act else plain


register(
    Family(
        model_types=("t5",),
        model_class="T5EncoderModel",
        tower="encoder",
        layers="block",
        sites=sites,
        final_norm="final_layer_norm",
        head_size="key_value_proj_dim",
        causal=lambda config: False,
        closed=KINDS,
        positions=lambda base: UNLIMITED,
    )
)
