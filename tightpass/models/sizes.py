"""Packaged configurations: architectures that can be built without a network."""

from __future__ import annotations

from typing import Any

from tightpass.errors import InputError

OPT_SIZES = {  # hidden_size, num_hidden_layers, num_attention_heads
    "125m": (768, 12, 12),
    "350m": (1024, 24, 16),
    "1.3b": (2048, 24, 32),
    "2.7b": (2560, 32, 32),
    "6.7b": (4096, 32, 32),
    "13b": (5120, 40, 40),
    "30b": (7168, 48, 56),
    "66b": (9216, 64, 72),
}
BERT_SIZES = {"base": (768, 12, 12), "large": (1024, 24, 16)}

ALIASES = {f"opt-{size}": f"facebook/opt-{size}" for size in OPT_SIZES} | {
    f"bert-{size}-uncased": f"google-bert/bert-{size}-uncased" for size in BERT_SIZES
}


def packaged_config(hub_id: str) -> Any | None:
    """The configuration of an aliased model, or None if it is not packaged."""
    name = hub_id.rsplit("/", 1)[-1]
    if ALIASES.get(name) != hub_id:
        return None
    if name.startswith("opt-"):
        return opt_config(name.removeprefix("opt-"))
    from transformers import BertConfig

    width, layers, heads = BERT_SIZES[name.split("-")[1]]
    return BertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
    )


def opt_config(size: str) -> Any:
    """The Hugging Face configuration of one OPT size, such as "125m"."""
    from transformers import OPTConfig

    width, layers, heads = OPT_SIZES[size]
    return OPTConfig(
        vocab_size=50272,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        ffn_dim=4 * width,
        max_position_embeddings=2048,
        # opt-350m alone is post-norm and embeds into half its width
        do_layer_norm_before=size != "350m",
        word_embed_proj_dim=512 if size == "350m" else width,
    )


SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "vocab_size")


def check_sizes(config: Any, name: str) -> None:
    """Raises InputError unless a configuration's sizes are positive integers."""
    for field in SIZES:
        if not hasattr(config, field):  # images and sounds have no vocabulary, relative positions no end
            continue
        value = getattr(config, field)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"the config.json of {name}: {field} must be an integer of at least 1, got {value!r}")
