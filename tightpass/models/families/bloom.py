"""BLOOM: ALiBi; attention and MLP add the residual themselves; a GELU whose derivative is written by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tightpass.models.families.base import Family, Sites, register


class Gelu(nn.Module):
    """BLOOM's own, with its constants, as a function that torch differentiates. The model's is an `autograd.Function` that
    `torch.func` cannot take."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z * 0.5 * (1.0 + torch.tanh(0.79788456 * z * (1 + 0.044715 * z * z)))


def prepare(base: Any) -> None:
    for layer in base.h:
        layer.mlp.gelu_impl = Gelu()


def sites(config: Any) -> Sites[str]:
    return Sites(
        context="self_attention",
        projection="self_attention.dense",
        up="mlp.dense_h_to_4h",
        act="mlp.gelu_impl",
        down="mlp.dense_4h_to_h",
        attn_norm="input_layernorm",
        mlp_norm="post_attention_layernorm",
    )


register(
    Family(
        model_types=("bloom",),
        layers="h",
        sites=sites,
        final_norm="ln_f",
        head_size="head_dim",
        causal=lambda config: True,
        own_attention=True,
        prepare=prepare,
    )
)
