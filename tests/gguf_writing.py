"""Small models as GGUF files, the way llama.cpp's converter writes them: names and layouts stand here once more, by hand."""

from __future__ import annotations

import gguf
import numpy as np

LLAMA = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
AFTER = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
GPT2 = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
NAMES = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma": LLAMA,
    "gemma2": LLAMA | AFTER | {"pre_feedforward_layernorm": "ffn_norm"},
    "olmo2": LLAMA | AFTER,
    "phi3": LLAMA | {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"},
    "starcoder2": LLAMA | {"mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"},
    "stablelm": LLAMA,
    "gpt2": GPT2,
}


def written(path, model, arch, kind=gguf.GGMLQuantizationType.F32, leave_out=(), **fields):
    """Writes a base model with weights in float32, its matrices quantised if asked; `fields` are written besides."""
    config = model.config
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.n_inner if arch == "gpt2" else config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    if arch in ("gpt2", "starcoder2", "stablelm"):
        writer.add_layer_norm_eps(epsilon(config))
    else:
        writer.add_layer_norm_rms_eps(epsilon(config))
    if arch != "gpt2":
        d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(d_head)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        turned = d_head * config.rope_parameters.get("partial_rotary_factor", 1.0)
        writer.add_rope_dimension_count(int(turned))
    if arch in ("gemma2", "phi3", "starcoder2"):
        writer.add_sliding_window(config.sliding_window)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    for key, value in fields.items():
        add(writer, key.replace("__", "."), value)
    for key, tensor in model.state_dict().items():
        name = name_of(key, NAMES[arch])
        if name not in leave_out:
            write(writer, name, laid_out(name, tensor.float().numpy(), arch, config), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write(writer, name, array, kind):
    array = np.ascontiguousarray(array)
    if array.ndim < 2 or kind == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, array)
    else:
        writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)


def add(writer, key, value):
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)


def epsilon(config):
    names = ("rms_norm_eps", "norm_epsilon", "layer_norm_eps", "layer_norm_epsilon")
    return next(getattr(config, name) for name in names if hasattr(config, name))


def name_of(key, names):
    """ "layers.3.mlp.up_proj.weight" -> "blk.3.ffn_up.weight"."""
    stem, _, leaf = key.rpartition(".")
    parts = stem.split(".")
    if parts[0] in ("layers", "h"):
        return f"blk.{parts[1]}.{names['.'.join(parts[2:])]}.{leaf}"
    return f"{names[stem]}.{leaf}"


def laid_out(name, array, arch, config):
    """What llama.cpp's converter changes."""
    part = name.split(".")[-2]
    if arch == "llama" and part in ("attn_q", "attn_k"):
        heads = config.num_attention_heads if part == "attn_q" else config.num_key_value_heads
        return array.reshape(heads, 2, len(array) // heads // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
    if arch.startswith("gemma") and name.endswith("norm.weight"):
        return array + 1
    if arch == "gpt2" and part in ("attn_qkv", "attn_output", "ffn_up", "ffn_down") and array.ndim == 2:
        return array.T
    return array
