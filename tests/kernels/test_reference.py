"""The closed forms against automatic differentiation of the real modules."""

from __future__ import annotations

import numpy as np
import plain_layers
import pytest
import torch
from oracles.places import place_of
from oracles.small_models import HF_MODELS

import tightpass as tp

IDS = [5, 17, 2, 88, 41]


def array(tensor):
    return tensor.detach().numpy()


def test_layer_norm_closed_form_and_its_null_direction(small_opt):
    norm = small_opt.decoder.layers[0].final_layer_norm
    x = torch.randn(21, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 3
    closed = plain_layers.layer_norm(array(x), array(norm.weight), norm.eps)
    assert np.abs(closed - array(torch.func.jacrev(norm)(x))).max() <= 1e-14
    assert np.abs(closed @ np.ones(21)).max() <= 1e-14
    shrunk = np.linalg.norm(closed @ (array(x) - array(x).mean()))
    assert 0 < shrunk < 1e-4 * np.linalg.norm(closed, 2) * np.linalg.norm(array(x))


@pytest.mark.parametrize("name", ["opt", "opt-post-norm", "bert"])
def test_mlp_block_closed_form(name):
    block = tp.block(tp.load_model(HF_MODELS[name]), "mlp", layer=1, token_ids=IDS)
    parts = block.layers[0]
    for t, panel in enumerate(tp.jacobian(block).panels().__next__().blocks):
        h = block.x[t] if parts.mlp_norm is None else parts.mlp_norm(block.x[t])
        slope = torch.func.vmap(torch.func.grad(parts.act))(parts.up(h))
        closed = plain_layers.mlp(array(parts.up.weight), array(parts.down.weight), array(slope))
        if parts.mlp_norm is not None:
            closed = closed @ plain_layers.layer_norm(
                array(block.x[t]), array(parts.mlp_norm.weight), parts.mlp_norm.eps
            )
        assert np.abs(closed - array(panel)).max() <= 1e-13 * np.abs(closed).max()


@pytest.mark.parametrize("name", ["opt", "bert"])
def test_attention_heads_closed_form_and_their_sum(name):
    model = tp.load_model(HF_MODELS[name])
    heads = model.config.num_attention_heads
    attention = tp.jacobian(tp.block(model, "attn", layer=1, token_ids=IDS, norm=False)).dense()
    total = np.zeros(attention.shape)
    for head in range(heads):
        block = tp.block(model, "head", layer=1, head=head, token_ids=IDS, norm=False)
        place = place_of(model.config)
        parts = place.pieces(block.layers[0].layer)
        maps = (parts.query, parts.key, parts.value)
        d_head = block.x.shape[1] // heads
        rows = slice(head * d_head, (head + 1) * d_head)
        weights = [array(linear.weight)[rows] for linear in maps]
        biases = [array(linear.bias)[rows] for linear in maps]
        Wo = array(parts.projection.weight)[:, rows]
        closed = plain_layers.attention(array(block.x), *weights, Wo, *biases, causal=place.causal(model.config))
        closed = closed.reshape(attention.shape)
        J = array(tp.jacobian(block).dense())
        assert np.abs(closed - J).max() <= 1e-13 * np.abs(closed).max()
        total += J
    assert np.abs(total - array(attention)).max() <= 1e-13 * np.abs(total).max()
