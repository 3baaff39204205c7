"""ViT, and DINOv2, which scales what each branch adds, feature by feature."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tightpass.models.families.base import Family, Sites, register
from tightpass.models.options import KINDS
from tightpass.models.signal import Signal, pixels


def sites(config: Any) -> Sites[str]:
    return Sites(
        context="attention",
        query="attention.q_proj",
        key="attention.k_proj",
        value="attention.v_proj",
        projection="attention.o_proj",
        up="mlp.fc1",
        act="mlp.activation_fn",
        down="mlp.fc2",
        attn_norm="layernorm_before",
        mlp_norm="layernorm_after",
    )


def scaled(config: Any) -> Sites[str]:
    own = replace(
        sites(config),
        attn_norm="norm1",
        attn_post="layer_scale1",
        mlp_norm="norm2",
        mlp_post="layer_scale2",
    )
    return replace(own, mlp="mlp", up=None, act=None, down="mlp.down_proj") if config.use_swiglu_ffn else own


def patches(config: Any) -> Signal:
    return pixels(config, extra=1)


def patches_of_any_image(config: Any) -> Signal:
    return pixels(config, extra=1, any_size=True)


VIT = Family(
    model_types=("vit",),
    layers="layers",
    sites=sites,
    final_norm="layernorm",
    head_size="head_dim",
    causal=lambda config: False,
    positions=lambda base: patches(base.config).tokens(),
    unused=("pooler.",),
    closed=KINDS,
    reads=patches,
)
register(VIT)
register(
    replace(
        VIT,
        model_types=("dinov2",),
        layers="encoder.layer",
        sites=scaled,
        unused=(),
        reads=patches_of_any_image,
    )
)
