"""The towers of CLIP and SigLIP, for images and for texts; of all these CLIP's texts alone are read causally."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tightpass.models.families.base import REFUSED, Family, Sites, register
from tightpass.models.options import KINDS
from tightpass.models.signal import Signal, pixels


def sites(config: Any) -> Sites[str]:
    return Sites(
        context="self_attn",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        projection="self_attn.out_proj",
        up="mlp.fc1",
        act="mlp.activation_fn",
        down="mlp.fc2",
        attn_norm="layer_norm1",
        mlp_norm="layer_norm2",
    )


def patches_and_class(config: Any) -> Signal:
    return pixels(config, extra=1)


def patches(config: Any) -> Signal:
    return pixels(config, extra=0)


CLIP_TEXT = Family(
    model_types=("clip_text_model",),
    layers="encoder.layers",
    sites=sites,
    final_norm="final_layer_norm",
    head_size="head_dim",
    causal=lambda config: True,
    positions=lambda base: int(base.embeddings.position_embedding.num_embeddings),
    closed=KINDS,
)
register(CLIP_TEXT)
register(
    replace(
        CLIP_TEXT,
        model_types=("clip_vision_model",),
        final_norm=None,  # there is one, of the token of the class alone
        causal=lambda config: False,
        unused=("post_layernorm.",),
        reads=patches_and_class,
    )
)
register(
    replace(
        CLIP_TEXT,
        model_types=("siglip_text_model",),
        model_class="SiglipTextModel",
        causal=lambda config: False,
        unused=("head.",),
    )
)
register(
    replace(
        CLIP_TEXT,
        model_types=("siglip_vision_model",),
        final_norm="post_layernorm",
        causal=lambda config: False,
        unused=("head.",),
        reads=patches,
    )
)

TOWERS = {"clip": "CLIP", "siglip": "Siglip"}
for kind, name in TOWERS.items():
    REFUSED[kind] = (
        "is two models, one for images and one for texts; give one of them: model.vision_model or model.text_model,\n"
        f"or a directory of its own, as {name}VisionModel.from_pretrained(DIR).save_pretrained(OTHER) makes it"
    )
