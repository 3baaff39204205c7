"""A tiny random model of each family, with whatever its configuration allows: grouped queries, heads of a width of their own,
windows shorter than the text, caps where they bend, biases, norms of queries and keys."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

SIZES = {
    "vocab_size": 37,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 17,
    "max_position_embeddings": 16,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
ALL_KEYS = {name: size for name, size in SIZES.items() if name != "num_key_value_heads"}
"""Of families whose heads share nothing."""
WIDE = {"head_dim": 4}
"""Heads of 4 features where 12 / 4 is 3."""
SQUARE = {"hidden_size": 16}
"""Where heads must be as wide as the model is, by their number."""
RMS, LN = {"rms_norm_eps": 1e-3}, {"layer_norm_eps": 1e-3}


def gpt(**changes: Any) -> dict[str, Any]:
    """Sizes as GPT-2 names them."""
    return {"vocab_size": 37, "n_embd": 12, "n_layer": 2, "n_head": 3, "n_inner": 17, "n_positions": 16, **changes}


def rope(**fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0, **fields}}


NONE = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SIZES | WIDE | RMS | {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", SIZES | WIDE | RMS | {"sliding_window": 3}),
    "qwen2": (
        "qwen2",
        SIZES | SQUARE | RMS | {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", SIZES | WIDE | RMS | {"attention_bias": True}),
    "smollm3": ("smollm3", SIZES | SQUARE | RMS | {"no_rope_layers": [1, 0], "attention_bias": True, "mlp_bias": True}),
    "granite": (
        "granite",
        SIZES
        | SQUARE
        | RMS
        | {
            "residual_multiplier": 0.3,
            "attention_multiplier": 0.7,
            "embedding_multiplier": 2.0,
            "attention_bias": True,
        },
    ),
    "gemma": ("gemma", SIZES | WIDE | RMS),
    "gemma2": (
        "gemma2",
        SIZES
        | WIDE
        | RMS
        | {"query_pre_attn_scalar": 3, "attn_logit_softcapping": 1.5, "sliding_window": 3, "attention_bias": True},
    ),
    "gemma3": (
        "gemma3_text",
        SIZES
        | WIDE
        | RMS
        | {
            "query_pre_attn_scalar": 3,
            "sliding_window": 3,
            "layer_types": ["sliding_attention", "full_attention"],
            "attention_bias": True,
        },
    ),
    "olmo2": ("olmo2", SIZES | SQUARE | RMS | {"attention_bias": True}),
    "phi": ("phi", SIZES | SQUARE | LN | {"qk_layernorm": True} | rope(partial_rotary_factor=0.5)),
    "phi3": ("phi3", SIZES | SQUARE | RMS | {"sliding_window": 3} | rope(partial_rotary_factor=0.5)),
    "stablelm": (
        "stablelm",
        SIZES | SQUARE | LN | {"qk_layernorm": True, "use_qkv_bias": True} | rope(partial_rotary_factor=0.5),
    ),
    "stablelm-parallel": (
        "stablelm",
        SIZES | SQUARE | LN | {"use_parallel_residual": True} | rope(partial_rotary_factor=0.5),
    ),
    "cohere": ("cohere", SIZES | SQUARE | LN | {"use_qk_norm": True, "attention_bias": True, "logit_scale": 0.5}),
    "starcoder2": ("starcoder2", SIZES | SQUARE | {"norm_epsilon": 1e-3, "sliding_window": 3}),
    "nemotron": (
        "nemotron",
        SIZES | WIDE | {"norm_eps": 1e-3, "attention_bias": True, "mlp_bias": True} | rope(partial_rotary_factor=0.5),
    ),
    "gpt_neox": ("gpt_neox", ALL_KEYS | SQUARE | LN | rope(partial_rotary_factor=0.5)),
    "gpt_neox-in-turn": (
        "gpt_neox",
        ALL_KEYS | SQUARE | LN | {"use_parallel_residual": False} | rope(partial_rotary_factor=0.5),
    ),
    "gpt2": ("gpt2", gpt(scale_attn_by_inverse_layer_idx=True, layer_norm_epsilon=1e-3) | NONE),
    "gptj": ("gptj", gpt(n_head=2, rotary_dim=4, layer_norm_epsilon=1e-3) | NONE),
    "gpt_neo": (
        "gpt_neo",
        {
            "vocab_size": 37,
            "hidden_size": 12,
            "num_layers": 2,
            "num_heads": 3,
            "intermediate_size": 17,
            "max_position_embeddings": 16,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 3,
            "layer_norm_epsilon": 1e-3,
        }
        | NONE,
    ),
}
"""Model type and settings."""


@cache
def made(name: str) -> Any:
    """A random float64 model, in eval mode. Configurations change the dictionaries that they are given."""
    kind, settings = CASES[name]
    copied = {key: dict(value) if isinstance(value, dict) else value for key, value in settings.items()}
    config = AutoConfig.for_model(kind, **copied)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AutoModel.from_config(config, dtype=torch.float64).eval()
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                around_one = parameter.ndim < 3 and ("norm" in key or ".ln_" in key) and key.endswith("weight")
                parameter.copy_(torch.randn_like(parameter) * 0.3 + (1.0 if around_one else 0.0))
            for key, buffer in model.named_buffers():
                if key.endswith("correction_bias"):
                    buffer.copy_(torch.randn_like(buffer) * 0.3)
    return model
