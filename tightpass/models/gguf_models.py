"""GGUF files as models: their configuration, and their tensors under Hugging Face's names and in its layout."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from tightpass.errors import InputError
from tightpass.models.gguf_files import GGUF, package

Values = Callable[[str, torch.Tensor, Any], torch.Tensor | None]
"""Name, stored tensor, configuration -> the tensor as Hugging Face has it; None where it is the same."""
FREQUENCIES = "rope_freqs.weight"
"""What rotary frequencies are divided by, in files of Llama 3.1 and later."""


def permuted(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor | None:
    """Queries and keys of llama.cpp's Llama: neighbours in a head are a rotary pair there, halves of the head here."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return None
    half = len(tensor) // heads // 2
    return tensor.reshape(heads, half, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def centred(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor | None:
    """Norms that multiply by 1 + w, and are stored as that; the difference is exact in float64."""
    return tensor.double() - 1 if name.endswith("norm.weight") else None


def transposed(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor | None:
    """Linear maps that are inputs by outputs here."""
    return tensor.T if name.startswith("blk.") and tensor.ndim == 2 else None


def same(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor | None:
    return None


@dataclass(frozen=True)
class Architecture:
    """What is particular to the files of an architecture.

    model_type   Hugging Face's name for it
    values       what llama.cpp changed in the tensors
    epsilon      what the configuration calls the norms' ε
    more         fields of the configuration that only this architecture has
    """

    model_type: str
    values: Values = same
    epsilon: str = "rms_norm_eps"
    more: Callable[[GGUF], dict[str, Any]] = lambda file: {}


def _llama(file: GGUF) -> dict[str, Any]:
    return {"attention_bias": "blk.0.attn_q.bias" in file.tensors, "mlp_bias": "blk.0.ffn_up.bias" in file.tensors}


def _windows(file: GGUF) -> dict[str, Any]:
    return {"sliding_window": file.said("attention.sliding_window")}


def _gemma2(file: GGUF) -> dict[str, Any]:
    """The scale is not in the file: it is by heads' width, but in the largest model (46 layers) by width over heads."""
    heads, layers = file.said("attention.head_count"), file.said("block_count")
    width = file.said("embedding_length") // heads if layers == 46 else file.said("attention.key_length")
    return _windows(file) | {
        "attn_logit_softcapping": decimal(file.said("attn_logit_softcapping", 50.0)),
        "query_pre_attn_scalar": width,
    }


def _stablelm(file: GGUF) -> dict[str, Any]:
    return {
        "use_qkv_bias": "blk.0.attn_q.bias" in file.tensors,
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in file.tensors,
        "qk_layernorm": "blk.0.attn_q_norm.weight" in file.tensors,
    }


ARCHITECTURES = {
    "llama": Architecture("llama", permuted, more=_llama),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "olmo2": Architecture("olmo2"),
    "gemma": Architecture("gemma", centred),
    "gemma2": Architecture("gemma2", centred, more=_gemma2),
    "phi3": Architecture("phi3", more=_windows),
    "starcoder2": Architecture("starcoder2", epsilon="norm_epsilon", more=_windows),
    "stablelm": Architecture("stablelm", epsilon="layer_norm_eps", more=_stablelm),
    "gpt2": Architecture("gpt2", transposed, epsilon="layer_norm_epsilon"),
}
"""By llama.cpp's name."""
SIZES = {
    "max_position_embeddings": "context_length",
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
}


def architecture_of(file: GGUF) -> Architecture:
    """Raises InputError for an architecture that is not in the table, and for mixtures of experts."""
    if file.architecture not in ARCHITECTURES:
        raise InputError(
            f"{file.path} is of architecture {file.architecture!r}; GGUF files are read of {', '.join(ARCHITECTURES)}.\n"
            "Give the model in Hugging Face format (safetensors) instead"
        )
    if file.said("expert_count", 0):
        raise InputError(
            f"{file.path} is a mixture of experts, which is not read from GGUF; give it in Hugging Face format"
        )
    return ARCHITECTURES[file.architecture]


def config_of(file: GGUF) -> Any:
    """The Hugging Face configuration that a file's metadata describe. Raises InputError for what they lack."""
    from transformers import AutoConfig

    row = architecture_of(file)
    sizes: dict[str, Any] = {field: _one(file, name) for field, name in SIZES.items()}
    heads, width = sizes["num_attention_heads"], sizes["hidden_size"]
    d_head = file.said("attention.key_length", width // heads)
    epsilon = file.said("attention.layer_norm_rms_epsilon", file.said("attention.layer_norm_epsilon", 1e-5))
    if row.model_type == "gpt2":
        sizes["n_inner"] = sizes.pop("intermediate_size")
    else:
        sizes |= {"head_dim": d_head, "num_key_value_heads": file.said("attention.head_count_kv", heads)}
        sizes["rope_parameters"] = _rotation(file, d_head)
    return AutoConfig.for_model(
        row.model_type,
        **sizes,
        **row.more(file),
        **{row.epsilon: decimal(epsilon)},
        vocab_size=file.shapes["token_embd.weight"][0],
        tie_word_embeddings="output.weight" not in file.tensors,
        bos_token_id=file.field("tokenizer.ggml.bos_token_id"),
        eos_token_id=file.field("tokenizer.ggml.eos_token_id"),
        pad_token_id=None,
    )


def decimal(stored: float) -> float:
    """The number that a float32 was written for: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(stored)))


def _one(file: GGUF, name: str) -> int:
    """A size that all layers share."""
    value = file.said(name)
    if not isinstance(value, int):
        raise InputError(
            f"{file.path}: {file.architecture}.{name} must be one integer for all layers, got {str(value)[:40]}; "
            "give the model in Hugging Face format"
        )
    return value


def _rotation(file: GGUF, d_head: int) -> dict[str, Any]:
    kind, factor = file.said("rope.scaling.type", "none"), file.said("rope.scaling.factor", 1.0)
    if kind not in ("none", "linear") or any("rope_factors" in name for name in file.tensors):
        raise InputError(
            f"{file.path} stretches its rotary positions ({kind if kind != 'none' else 'longrope'}), which is not read from "
            "GGUF; give the model in Hugging Face format"
        )
    found = {"rope_type": "default", "rope_theta": decimal(file.said("rope.freq_base", 10000.0))}
    if kind == "linear" and factor != 1:
        found |= {"rope_type": "linear", "factor": decimal(factor)}
    turned = file.said("rope.dimension_count", d_head)
    return found if turned == d_head else found | {"partial_rotary_factor": turned / d_head}


class Renamed:
    """A file's tensors as a model's weights: dequantised, under the model's names, in its layout."""

    def __init__(self, file: GGUF, keys: Collection[str], prefix: str, config: Any) -> None:
        self.file, self.config, self.values = file, config, architecture_of(file).values
        named = {key: _name(file, key, prefix) for key in keys}
        self.names = {key: name for key, name in named.items() if name is not None and name in file.tensors}
        self.shapes = {key: self._shape(key) for key in self.names}
        self.beyond = sorted(set(file.tensors) - {*self.names.values(), FREQUENCIES})
        self._refuse_left_over()

    def read(self, key: str, rows: Sequence[int] | None = None) -> torch.Tensor:
        """A weight, or some of its rows."""
        name = self.names[key]
        if rows is not None and self._changed(name, torch.empty(self.file.shapes[name], device="meta")) is None:
            return self.file.read(name, rows)
        stored = self.file.read(name)
        changed = self._changed(name, stored)
        whole = stored if changed is None else changed
        return whole if rows is None else whole[list(rows)]

    def _refuse_left_over(self) -> None:
        """Raises InputError for tensors of layers that the model has no place for."""
        left = [name for name in self.beyond if name.startswith("blk.")]
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            raise InputError(
                f"{self.file.path} holds tensors that a {self.config.model_type} has no place for: {', '.join(left[:3])}{more}.\n"
                "This variant is not read from GGUF; give the model in Hugging Face format"
            )

    def _changed(self, name: str, tensor: torch.Tensor) -> torch.Tensor | None:
        return self.values(name, tensor, self.config)

    def _shape(self, key: str) -> tuple[int, ...]:
        empty = torch.empty(self.file.shapes[self.names[key]], device="meta")
        changed = self._changed(self.names[key], empty)
        return tuple((empty if changed is None else changed).shape)


def _name(file: GGUF, key: str, prefix: str) -> str | None:
    """What llama.cpp calls a weight of a base model."""
    gguf = package()
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == file.architecture)
    table = _table(kind, file.said("block_count"))
    stem, _, leaf = key.rpartition(".")
    found = table.get_name(f"{prefix}.{stem}") or table.get_name(stem)
    return None if found is None else f"{found}.{leaf}"


@lru_cache(maxsize=1)
def _table(kind: Any, layers: int) -> Any:
    return package().get_tensor_name_map(kind, layers)


def turn_as_stored(base: nn.Module, file: GGUF) -> None:
    """Divides a model's rotary frequencies by the factors of its file, if there are any."""
    if FREQUENCIES not in file.tensors:
        return
    factors = file.read(FREQUENCIES)
    for module in base.modules():
        for name in ("inv_freq", "original_inv_freq"):
            if isinstance(frequencies := getattr(module, name, None), torch.Tensor):
                setattr(module, name, frequencies / factors.to(frequencies))
