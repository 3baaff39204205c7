"""Small real models of odd sizes, with random weights."""

from __future__ import annotations

import torch
from transformers import BertConfig, BertModel, OPTConfig, OPTModel


def opt(**changes):
    """A random OPT of odd sizes: 3 layers, width 21, 3 heads."""
    settings = {
        "vocab_size": 97,
        "hidden_size": 21,
        "word_embed_proj_dim": 21,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "ffn_dim": 50,
        "max_position_embeddings": 19,
    }
    torch.manual_seed(1)
    model = OPTModel._from_config(OPTConfig(**settings | changes), dtype=torch.float64).eval()
    return randomise(model)


def bert(**changes):
    """A random BERT of odd sizes: 2 layers, width 15, 5 heads."""
    settings = {
        "vocab_size": 97,
        "hidden_size": 15,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
        "intermediate_size": 31,
        "max_position_embeddings": 19,
    }
    torch.manual_seed(2)
    return randomise(BertModel._from_config(BertConfig(**settings | changes), dtype=torch.float64).eval())


def randomise(model):
    """Weights large enough that attention is not uniform and biases and norms matter."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.ndim == 2 else 0.2
            parameter.copy_(torch.randn_like(parameter) * spread + (1.0 if "orm.weight" in name else 0.0))
    return model


HF_MODELS = {
    "opt": opt(),
    "opt-post-norm": opt(do_layer_norm_before=False, word_embed_proj_dim=9),
    "bert": bert(),
    "bert-decoder": bert(is_decoder=True),
}
