"""Tiny models of more decoders: experts, latent attention, sinks, ALiBi, gates, layers without attention. Joins
`family_models.CASES`."""

from __future__ import annotations

from typing import Any

from oracles.family_models import ALL_KEYS, CASES, LN, NONE, RMS, SIZES, SQUARE, WIDE, rope

WINDOW = {"sliding_window": 3}
KINDS = {"layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 7}
LATENT = {
    "q_lora_rank": 6,
    "kv_lora_rank": 5,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 3,
    "v_head_dim": 2,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "attention_bias": True,
}
DELTA = {
    "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 3,
    "linear_value_head_dim": 5,
    "linear_conv_kernel_dim": 3,
    "attention_bias": True,
}


def falcon(**changes: Any) -> dict[str, Any]:
    return (
        ALL_KEYS
        | NONE
        | {"ffn_hidden_size": 17, "layer_norm_epsilon": 1e-3, "bias": True}
        | rope()
        | {"hidden_size": 16, **changes}
    )


DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", SIZES | WIDE | RMS | WINDOW | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "qwen3_moe",
        SIZES
        | WIDE
        | RMS
        | EXPERTS
        | {"num_experts": 5, "norm_topk_prob": True, "mlp_only_layers": [0], "attention_bias": True},
    ),
    "qwen3_moe-plain": ("qwen3_moe", SIZES | WIDE | RMS | EXPERTS | {"num_experts": 5, "norm_topk_prob": False}),
    "olmo": ("olmo", SIZES | WIDE | {"clip_qkv": 0.6, "attention_bias": True}),
    "olmo3": ("olmo3", SIZES | WIDE | RMS | WINDOW | KINDS | {"attention_bias": True}),
    "cohere2": ("cohere2", SIZES | SQUARE | LN | WINDOW | KINDS | {"attention_bias": True}),
    "deepseek": ("deepseek_v3", ALL_KEYS | RMS | EXPERTS | LATENT),
    "deepseek-plain": (
        "deepseek_v3",
        ALL_KEYS
        | RMS
        | EXPERTS
        | LATENT
        | {"q_lora_rank": None, "rope_interleave": False, "norm_topk_prob": False, "first_k_dense_replace": 0},
    ),
    "gpt_oss": (
        "gpt_oss",
        SIZES
        | WIDE
        | RMS
        | WINDOW
        | KINDS
        | {"num_local_experts": 4, "num_experts_per_tok": 2, "swiglu_limit": 0.4}
        | rope(),
    ),
    "falcon-7b": ("falcon", falcon()),
    "falcon-40b": ("falcon", falcon(new_decoder_architecture=True, num_kv_heads=2)),
    "falcon-11b": ("falcon", falcon(new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1)),
    "falcon-rw": (
        "falcon",
        falcon(alibi=True, multi_query=False, parallel_attn=False, hidden_size=12, num_attention_heads=3),
    ),
    "bloom": (
        "bloom",
        {"vocab_size": 37, "hidden_size": 12, "n_layer": 2, "n_head": 3, "layer_norm_epsilon": 1e-3} | NONE,
    ),
    "mpt": (
        "mpt",
        {
            "vocab_size": 37,
            "d_model": 12,
            "n_layers": 2,
            "n_heads": 3,
            "max_seq_len": 16,
            "layer_norm_epsilon": 1e-3,
            "attn_config": {"clip_qkv": 0.6, "softmax_scale": 0.7},
        }
        | NONE,
    ),
    "qwen3_next": (
        "qwen3_next",
        SIZES | RMS | EXPERTS | DELTA | {"num_experts": 4, "shared_expert_intermediate_size": 9},
    ),
    "qwen3_5": ("qwen3_5_text", SIZES | RMS | DELTA),
    "lfm2": (
        "lfm2",
        SIZES
        | WIDE
        | {"norm_eps": 1e-3, "layer_types": ["conv", "full_attention"], "conv_bias": True, "conv_L_cache": 3},
    ),
}
CASES |= DECODERS
HEADS = {
    "deepseek": (4, 4, 2),
    "deepseek-plain": (4, 4, 2),
    "falcon-7b": (4, 1, 4),
    "falcon-40b": (4, 2, 4),
    "falcon-11b": (4, 2, 4),
}
"""Heads, heads of keys and values, and their width, where configurations have other words for them."""
