"""Blocks whose singular values one can write down."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from oracles.small_models import opt
from svd_matrices import with_spectrum

import tightpass as tp

IDS = [5, 17, 2, 88, 41, 7]


def within_floor(S, expected):
    """Whether the values are the expected ones, to the floor and the rounding of the expectation itself."""
    expected = np.sort(np.asarray(expected, dtype=float))[::-1]
    return np.abs(S.values - expected).max() <= S.floor.total + 1e-14 * expected[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (9, 2)])
def test_a_linear_block_has_its_weights_values_once_a_token(shape, dtype):
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    x = torch.randn(4, shape[1], generator=torch.Generator().manual_seed(1), dtype=dtype)
    S = tp.spectrum(tp.jacobian(lambda x: x @ W.T, x, structure=tp.BlockDiagonal()))
    assert within_floor(S, np.repeat(np.linalg.svd(W.double().numpy(), compute_uv=False), 4))
    assert S.rank.interval == (4 * min(shape), 4 * min(shape))
    assert S.rank.flag == "certified"


def test_a_layer_norm_loses_the_mean_and_all_but_epsilon_of_its_own_direction():
    """1/√(var + ε) for d − 2 directions, times ε/(var + ε) along x̂, and zero along the mean."""
    T, d, eps = 5, 11, 1e-5
    x = torch.randn(T, d, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    S = tp.spectrum(tp.jacobian(torch.nn.LayerNorm(d, eps=eps, dtype=torch.float64), x, structure=tp.BlockDiagonal()))
    variance = x.var(-1, unbiased=False).numpy()
    r = 1 / np.sqrt(variance + eps)
    assert within_floor(S, np.r_[np.repeat(r, d - 2), r * eps / (variance + eps), np.zeros(T)])
    assert S.rank.interval == (T * (d - 1), T * (d - 1))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("active", [0, 1, 5, 19, 20, 21, 50])
def test_a_relu_mlp_passes_as_many_directions_as_units_are_active(small_opt, active, dtype):
    """A LayerNorm leaves 20 of 21 directions, one of them, x̂, at ε of its size: for float32 that is noise."""
    hf = copy.deepcopy(small_opt)
    layer = hf.decoder.layers[1]
    with torch.no_grad():
        layer.fc1.bias[:] = -30.0
        layer.fc1.bias[:active] = 30.0
    S = tp.spectrum(tp.jacobian(tp.block(tp.load_model(hf, dtype=dtype), "mlp", layer=1, token_ids=IDS)))
    expected = 6 * min(active, 20 if dtype == "float64" else 19)
    assert S.evidence.active == (active,) * 6
    assert S.rank.interval == (expected, expected)
    assert S.rank.flag == "certified"
    assert S.known_zeros.count == 6 * (21 - min(active, 20))
    assert S.known_zeros.largest <= S.floor.total


def uniform(heads_used, d_head=7, norm=True):
    """An OPT whose first attention looks at all earlier tokens alike, with all but some heads switched off."""
    hf = opt(num_attention_heads=21 // d_head)
    attention = hf.decoder.layers[0].self_attn
    with torch.no_grad():
        attention.q_proj.weight[:] = 0
        attention.q_proj.bias[:] = 0
        attention.out_proj.weight[:, heads_used * d_head :] = 0
    return tp.block(tp.load_model(hf), "attn", layer=0, token_ids=IDS, norm=norm)


def test_uniform_attention_is_a_kronecker_product():
    """Queries of zero: J = C ⊗ Wo·Wv with C the causal mean, so σ(J) = σ(C)·σ(Wo·Wv), every pair."""
    block = uniform(3, norm=False)
    parts = block.layers[0]
    C = np.tril(np.ones((6, 6))) / np.arange(1, 7)[:, None]
    mix = (parts.projection.weight @ parts.value.weight).detach().numpy()
    expected = np.outer(np.linalg.svd(C, compute_uv=False), np.linalg.svd(mix, compute_uv=False)).ravel()
    S = tp.spectrum(tp.jacobian(block))
    assert within_floor(S, expected)
    assert S.rank.flag == "certified"


@pytest.mark.parametrize("heads", [1, 2, 5])
def test_a_few_heads_of_rank_one(heads):
    """d_head = 1: each head passes one direction a token, and J their sum."""
    S = tp.spectrum(tp.jacobian(uniform(heads, d_head=1)))
    assert S.rank.interval == (6 * heads, 6 * heads)
    assert S.rank.flag == "certified"
    assert S.cliff.index == 6 * heads


@pytest.mark.parametrize("noise", [1e-4, 1e-6, 1e-8, 1e-10, 1e-12])
def test_low_rank_plus_noise(noise):
    """The rank above the noise is certain at a threshold between, and the fall into it is found as a knee."""
    rng = np.random.default_rng(3)
    r, n = 23, 90
    E = rng.standard_normal((n, n))
    A = torch.from_numpy(
        with_spectrum(np.r_[rng.uniform(0.5, 1, r), np.zeros(n - r)]) + E * (noise / np.linalg.norm(E, 2))
    )
    S = tp.spectrum(tp.jacobian(lambda x: x @ A.T, torch.zeros(1, n, dtype=torch.float64)))
    between = S.rank_at(float(np.sqrt(noise)))
    assert between.interval == (r, r)
    assert between.flag == "certified"
    knee = S.knees[0]
    assert knee.index == r
    assert 0.2 / noise <= knee.ratio <= 2 / noise
    assert knee.chance < 1e-6
    assert S.rank.lo > r  # J's own arithmetic is finer than this noise, which it cannot tell from signal


# ---- kinks


def test_units_that_flip_between_precisions_are_kinks_and_keep_the_floor(small_opt):
    """Pre-activations of a few roundings: float32 and float64 disagree about some signs, and half of σ₁ hangs on each."""
    hf = copy.deepcopy(small_opt)
    model = tp.load_model(hf, dtype="float32")
    clean = tp.block(model, "mlp", layer=1, token_ids=IDS)
    parts = clean.layers[0]
    with torch.no_grad():
        h = parts.mlp_norm(clean.x[2])
        parts.up.bias[:] -= parts.up(h)
    block = tp.block(model, "mlp", layer=1, token_ids=IDS)
    coarse = block.unit_calls()[0].y.reshape(6, -1)[2] > 0
    wide = copy.deepcopy(parts.layer).double()
    fine = wide.fc1(wide.final_layer_norm(block.x[2].double())) > 0
    flipped = int((coarse != fine).sum())
    assert flipped > 5
    S = tp.spectrum(tp.jacobian(block))
    assert S.evidence.kinks >= flipped
    assert S.floor.total <= 1e-5 * S.values[0]
    assert S.floor.total <= 3 * tp.spectrum(tp.jacobian(clean)).floor.total
    widened = S.rank.hi - S.rank.lo
    assert widened >= min(S.evidence.kinks, 20)
    assert S.rank.nearest is None
