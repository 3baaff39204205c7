"""A tiny random model of each family of encoders, of texts, images and sounds, as in `family_models`: windows shorter than the
input, relative positions that fall together, gates, images that are no squares."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel

IDS = [5, 17, 2, 30, 11, 7]
SIZES = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 17,
    "layer_norm_eps": 1e-3,
}
NONE = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
TEXT = SIZES | NONE | {"vocab_size": 37, "max_position_embeddings": 16}
SQUARE = SIZES | {"image_size": 9, "patch_size": 4}
"""Of whose images a row and a column are left over."""
T5 = NONE | {
    "vocab_size": 37,
    "d_model": 12,
    "d_kv": 5,
    "d_ff": 17,
    "num_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 4,
    "layer_norm_epsilon": 1e-3,
}
DEBERTA = TEXT | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 2}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "roberta": ("roberta", TEXT | {"pad_token_id": 1}),
    "electra": ("electra", TEXT | {"embedding_size": 7}),
    "distilbert": (
        "distilbert",
        NONE
        | {
            "vocab_size": 37,
            "dim": 12,
            "n_layers": 2,
            "n_heads": 3,
            "hidden_dim": 17,
            "max_position_embeddings": 16,
        },
    ),
    "albert": ("albert", TEXT | {"embedding_size": 7, "num_hidden_layers": 3}),
    "albert-groups": ("albert", TEXT | {"embedding_size": 7, "num_hidden_layers": 4, "num_hidden_groups": 2}),
    "deberta-v2": ("deberta-v2", DEBERTA),
    "deberta-v3": (
        "deberta-v2",
        DEBERTA
        | {
            "share_att_key": True,
            "position_buckets": 4,
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
        },
    ),
    "modernbert": (
        "modernbert",
        {key: value for key, value in TEXT.items() if key != "layer_norm_eps"}
        | {
            "norm_eps": 1e-3,
            "norm_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
            "num_attention_heads": 2,
            "local_attention": 4,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "t5": ("t5", T5 | {"feed_forward_proj": "relu"}),
    "t5-gated": ("t5", T5 | {"feed_forward_proj": "gated-gelu"}),
    "clip-text": ("clip_text_model", TEXT | {"eos_token_id": 36}),
    "siglip-text": ("siglip_text_model", TEXT),
    "vit": ("vit", SIZES | {"image_size": [6, 9], "patch_size": [3, 3], "num_channels": 2}),
    "dinov2": ("dinov2", {k: v for k, v in SQUARE.items() if k != "intermediate_size"} | {"mlp_ratio": 2}),
    "dinov2-gated": (
        "dinov2",
        {k: v for k, v in SQUARE.items() if k != "intermediate_size"} | {"mlp_ratio": 2, "use_swiglu_ffn": True},
    ),
    "clip-vision": ("clip_vision_model", SQUARE),
    "siglip-vision": ("siglip_vision_model", SQUARE | {"num_channels": 1}),
    "whisper": (
        "whisper",
        NONE
        | {
            "vocab_size": 37,
            "num_mel_bins": 5,
            "d_model": 12,
            "encoder_layers": 2,
            "encoder_attention_heads": 3,
            "encoder_ffn_dim": 17,
            "decoder_layers": 1,
            "decoder_attention_heads": 3,
            "decoder_ffn_dim": 5,
            "max_source_positions": 6,
            "max_target_positions": 4,
            "begin_suppress_tokens": None,
        },
    ),
}
"""Model type and settings."""
CLASSES = {"siglip_text_model": "SiglipTextModel"}
"""Where `AutoModel` knows none."""


def config_of(name: str) -> Any:
    kind, settings = CASES[name]
    return AutoConfig.for_model(kind, **{k: list(v) if isinstance(v, list) else v for k, v in settings.items()})


@cache
def made(name: str) -> Any:
    """A random float64 model, in eval mode; of T5 and Whisper with its decoder."""
    config = config_of(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        if config.model_type in CLASSES:
            model = getattr(transformers, CLASSES[config.model_type])(config).double().eval()
        else:
            model = AutoModel.from_config(config, dtype=torch.float64).eval()
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                lower = key.lower()
                around_one = parameter.ndim == 1 and "norm" in lower and lower.endswith("weight")
                parameter.copy_(torch.randn_like(parameter) * 0.3 + (1.0 if around_one else 0.0))
    return model


def reads_text(name: str) -> bool:
    return "vocab_size" in CASES[name][1] and name != "whisper"


def given_of(name: str) -> dict[str, Any]:
    """What `tp.block` is handed: token ids, or nothing for random pixels."""
    return {"token_ids": IDS} if reads_text(name) else {}
