"""Undecided ReLU units: what they leave open of each token, of a comparison, and where they leave nothing open."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles.small_models import opt

import tightpass as tp
from tightpass.rank.difference import outside
from tightpass.rank.records import Evidence

IDS = [5, 17, 2, 88, 41, 7, 60]


def undecided_at(hf, token, layer=1, unit=5):
    """A copy of the model in which one unit reads two features of one token and is exactly zero there."""
    hf = copy.deepcopy(hf)
    parts = tp.block(tp.load_model(hf), "mlp", layer=layer, token_ids=IDS)
    with torch.no_grad():
        h = parts.layers[0].mlp_norm(parts.x[token])
        up = hf.decoder.layers[layer].fc1
        up.weight[unit] = 0
        up.weight[unit, :2] = torch.stack([h[1], -h[0]])
        up.bias[unit] = -torch.dot(up.weight[unit], h)
    return hf


def spectrum(hf, **changes):
    return tp.spectrum(tp.jacobian(tp.block(tp.load_model(hf), "mlp", token_ids=IDS, **{"layer": 1} | changes)))


@pytest.mark.parametrize("token", [0, 3, 6])
def test_an_undecided_unit_widens_the_rank_of_its_token_alone(small_opt, token):
    S = spectrum(undecided_at(small_opt, token))
    assert S.evidence.undecided == tuple(int(t == token) for t in range(7))
    table = S.by_token()
    width = table.rank_high - table.rank_low
    assert width[token] >= 1
    assert width.drop(token).eq(0).all()
    assert table.rank_low.sum() >= S.rank.lo
    assert table.rank_high.sum() >= S.rank.hi


def test_evidence_without_kinks_of_tokens_loads_and_widens_every_token(small_opt):
    S = spectrum(undecided_at(small_opt, 3))
    stored = json.loads(json.dumps(S.evidence.as_dict()))
    assert Evidence.from_dict(stored) == S.evidence
    del stored["undecided"]
    before = Evidence.from_dict(stored)
    assert json.loads(json.dumps(before.as_dict())) == stored
    table = replace(S, evidence=before).by_token()
    assert (table.rank_high - table.rank_low).ge(1).any()
    assert before.kinks_of(0) == before.kinks == 1


def pruned(which, count=6):
    hf = opt(num_hidden_layers=1, hidden_size=13, word_embed_proj_dim=13, ffn_dim=12, num_attention_heads=1)
    layer = hf.decoder.layers[0]
    with torch.no_grad():
        if which == "rows":
            layer.fc1.weight[:count] = 0
            layer.fc1.bias[:count] = 0
        else:  # undecided as well: their pre-activation is zero
            layer.fc1.weight[:count, 1:] = 0
            layer.fc1.weight[:count, 0] = 1e-30
            layer.fc1.bias[:count] = 0
            layer.fc2.weight[:, :count] = 0
    return hf


@pytest.mark.parametrize("which", ["rows", "columns"])
@pytest.mark.parametrize("kind", ["mlp", "layer"])
def test_pruned_units_leave_nothing_open(which, kind):
    hf = pruned(which)
    block = tp.block(tp.load_model(hf), kind, layer=0, token_ids=IDS)
    S = tp.spectrum(tp.jacobian(block))
    assert S.evidence.kinks == 0
    truth = torch.linalg.matrix_rank(torch.func.jacrev(block.function())(block.x).reshape(7 * 13, -1), rtol=1e-10)
    if kind == "mlp":
        assert S.rank.interval == (int(truth),) * 2
        assert S.evidence.bounds[0].rank == int(truth) <= 7 * 6


@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_a_pruned_unit_with_a_bias_is_not_counted_as_active(bias):
    hf = pruned("rows")
    with torch.no_grad():
        hf.decoder.layers[0].fc1.bias[:6] = bias
    assert max(spectrum(hf, layer=0).evidence.active) <= 6


def flipped(hf, way):
    """The same block with the undecided unit's bias a hair to either side."""
    hf = copy.deepcopy(hf)
    with torch.no_grad():
        hf.decoder.layers[1].fc1.bias[5] += way * 1e-17
        hf.decoder.layers[1].fc2.weight[:, 5] *= 20
    return hf


@pytest.mark.parametrize("token", [1, 3])
def test_two_ways_of_an_undecided_unit_are_not_called_different(small_opt, token):
    """J of both patterns, by hand: the unit at zero held active and held inactive."""
    hf = flipped(undecided_at(small_opt, token), 0)
    block = tp.block(tp.load_model(hf), "mlp", layer=1, token_ids=IDS)
    held = block.in_precision(torch.float64)
    S, spectra = tp.spectrum(tp.jacobian(block)), []
    for way in (0.0, 1.0):
        pattern = held.pattern[0].clone()
        pattern[token, 5] = way
        J = torch.func.jacrev(replace(held, pattern=(pattern,)).function())(block.x).reshape(7 * 21, 7 * 21)
        spectra.append(replace(S, values=torch.linalg.svdvals(J).numpy()))
    a, b = spectra
    assert np.abs(a.values - b.values).max() > a.floor.total + b.floor.total
    found = tp.difference(a, b)
    assert not found.different, str(found)
    assert found.kinks == 2
    assert "2 undecided units" in str(found)
    decided = [replace(s, evidence=replace(s.evidence, kinks=0, undecided=None)) for s in spectra]
    assert tp.difference(*decided).different
    other = spectrum(hf, layer=0)
    assert tp.difference(a, other).different  # another matrix stays another one


@pytest.mark.parametrize("places", [0, 1, 3, 50])
def test_a_change_of_low_rank_stays_within_its_places(places):
    rng = np.random.default_rng(places)
    A = rng.standard_normal((12, 9))
    E = 10 * rng.standard_normal((12, min(places, 9))) @ rng.standard_normal((min(places, 9), 9))
    a, b = (np.linalg.svd(M, compute_uv=False) for M in (A, A + E))
    assert outside(a, b, places).max() < 1e-12
    assert outside(a + 100, b, places).max() > (50 if places < 9 else -1)
