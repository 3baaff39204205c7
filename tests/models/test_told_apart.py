"""Formulas that look alike where weights are odd: the right one is taken, or none."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import AutoConfig, AutoModel

import tightpass as tp
from tightpass.models.norms import kind_of

IDS = [5, 17, 2, 3, 9]
NONE = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}


def random(model):
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + ("norm" in key and "weight" in key))
    return model.eval()


def neox_with_large_entries(big, dense, qk):
    """Entries that do not turn are so large that those which do are hardly seen beside them, in queries, keys and outputs."""
    torch.manual_seed(1)
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    config = AutoConfig.for_model("gpt_neox", **sizes, rope_parameters=rope, max_position_embeddings=64, **NONE)
    model = random(AutoModel.from_config(config, dtype=torch.float64))
    with torch.no_grad():
        for layer in model.layers:
            attention = layer.attention
            W, b = attention.query_key_value.weight.view(2, 3, 8, 16), attention.query_key_value.bias.view(2, 3, 8)
            W[:, :2] *= qk
            b[:, :2] *= qk
            W[:, 0, 6] = b[:, 0, 6] = W[:, 1, 7] = b[:, 1, 7] = 0
            b[:, 0, 7] = b[:, 1, 6] = big
            attention.dense.bias += dense
    return model


def off(block, values):
    """Largest error of singular values, against J in float64."""
    wide = block.in_precision(torch.float64)
    N = block.x.numel()
    true = torch.linalg.svdvals(torch.func.jacrev(wide.function())(wide.x).reshape(N, N))
    return float((torch.as_tensor(values).double() - true).abs().max())


@pytest.mark.parametrize(
    ("dtype", "big", "dense", "qk"), [("float32", 1e4, 0, 0.2), ("float32", 3e4, 300, 0.4), ("float64", 1e5, 1e6, 0.3)]
)
def test_a_rotation_beside_large_entries_is_seen(dtype, big, dense, qk):
    block = tp.block(tp.load_model(neox_with_large_entries(big, dense, qk), dtype=dtype), "attn", 1, token_ids=IDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        S = tp.spectrum(tp.jacobian(block))
    assert off(block, S.values) <= S.floor.total + 1e-9 * S.values[0]  # the reference is rounded, too


@pytest.mark.parametrize("factor", [1e5, 1e7])
def test_a_rotation_by_tiny_angles_is_one(factor):
    torch.manual_seed(1)
    rope = {"rope_type": "linear", "factor": factor, "rope_theta": 1e4}
    sizes = {
        "vocab_size": 40,
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 16,
    }
    config = AutoConfig.for_model("llama", **sizes, rope_parameters=rope, max_position_embeddings=64, **NONE)
    model = random(AutoModel.from_config(config, dtype=torch.float64))
    block = tp.block(tp.load_model(model), "attn", 1, token_ids=IDS)
    J = tp.jacobian(block)
    assert J.form.closed
    assert J.form.heads.turn_q is not None
    N = block.x.numel()
    true = torch.func.jacrev(block.function())(block.x).reshape(N, N)
    assert float((J.dense() - true).abs().max()) <= 1e-14 * float(torch.linalg.matrix_norm(true, 2))


class OwnNorm(torch.nn.Module):
    """An RMSNorm that keeps what it adds to itself."""

    def __init__(self, added):
        super().__init__()
        self.weight, self.added = torch.nn.Parameter(torch.rand(7, dtype=torch.float64) + 0.5), added

    def forward(self, x):
        return self.weight * x / (x.square().mean(-1, keepdim=True) + self.added).sqrt()


def test_what_is_added_to_the_variance_is_seen():
    like = torch.zeros(1, dtype=torch.float64)
    assert kind_of(OwnNorm(1e-5), 7, like) is not None
    assert kind_of(OwnNorm(0), 7, like) is None
    assert kind_of(OwnNorm(3e-5), 7, like) is None
    whole = OwnNorm(0)
    whole.variance_epsilon = 0
    assert kind_of(whole, 7, like).eps == 0


def test_rejected_formulas_measure_no_floor(monkeypatch):
    """Where the closed form is wrong, what is made of the same formulas is not held against J."""
    from tightpass.models import formulas

    torch.manual_seed(1)
    sizes = {
        "vocab_size": 40,
        "hidden_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "intermediate_size": 16,
    }
    config = AutoConfig.for_model("llama", **sizes, max_position_embeddings=64, **NONE)
    model = random(AutoModel.from_config(config, dtype=torch.float64))
    block = tp.block(tp.load_model(model), "attn", 0, token_ids=IDS)
    monkeypatch.setattr(formulas, "_rotations", lambda tables, d_head: iter([None]))
    monkeypatch.setattr(formulas, "ROUNDED", float("inf"))
    with pytest.warns(UserWarning, match="differs from automatic differentiation"):
        J = tp.jacobian(block)
    assert not J.form.closed
    part = tp.spectrum(J).floor.parts[0]
    assert part.confidence == "calibrated"
    assert part.bound <= 1e-12


def test_heads_of_two_entries_turn_by_one_angle():
    """Their tables hold each angle once: one column, which has no halves."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 37, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    experts = {"intermediate_size": 5, "num_local_experts": 3, "num_experts_per_tok": 2}
    config = AutoConfig.for_model(
        "gpt_oss", **sizes, **experts, num_key_value_heads=1, head_dim=2, max_position_embeddings=64, **NONE
    )
    model = random(AutoModel.from_config(config, dtype=torch.float64, experts_implementation="eager"))
    block = tp.block(tp.load_model(model), "attn", 0, token_ids=[1, 2, 3])
    J = tp.jacobian(block)
    assert J.form.closed
    found = torch.linalg.svdvals(J.dense())
    assert off(block, found) <= 1e-14 * float(found[0])


@pytest.mark.parametrize("kind", ["mlp", "attn"])
def test_jacobians_whose_squares_underflow_are_no_mistake(kind):
    """Of entries next to 1e-200: their norms are measured, and the form agrees with autodiff."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 37,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 5,
    }
    model = random(AutoModel.from_config(AutoConfig.for_model("llama", **sizes, **NONE), dtype=torch.float64))
    with torch.no_grad():
        for last in (model.layers[0].self_attn.o_proj, model.layers[0].mlp.down_proj):
            last.weight *= 1e-200
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        J = tp.jacobian(tp.block(tp.load_model(model), kind, 0, token_ids=[1, 2, 3]))
    assert J.form.closed
