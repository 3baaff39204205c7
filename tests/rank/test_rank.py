"""Floors, labels, intervals, falls: known answers and Weyl's inequality."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.places import place_of

import tightpass as tp
from tightpass.evidence.arithmetic import norm2
from tightpass.evidence.units import units
from tightpass.rank.floor import Floor
from tightpass.rank.interval import above_by_energy, labels, nearest_certain, rank_at
from tightpass.rank.knee import cliff, knees
from tightpass.rank.measures import measures
from tightpass.rank.records import Part

IDS = [5, 17, 2, 88, 41, 7, 60]


def test_labels_and_rank_by_the_words_of_the_design():
    values = np.array([1.0, 0.5, 0.29, 0.15, 0.1, 0.05])
    assert labels(values, 0.1).tolist() == [2, 2, 1, 1, 0, 0]
    rank = rank_at(values, 0.1, 0.2, bound=6)
    assert rank.interval == (2, 4)
    assert rank.flag == "ambiguous"
    assert rank_at(values, 0.1, 0.2, bound=3).interval == (2, 3)
    assert rank_at(values, 0.1, 0.2, bound=3).flag == "interval"
    assert rank_at(values, 0.1, 0.2, bound=2).flag == "certified"
    assert rank_at(values, 0.1, 0.2, bound=6, kinks=1).interval == (1, 5)
    assert rank_at(values, 0.1, 0.2, bound=4, kinks=1).interval == (1, 4)
    assert rank_at(values, 0.1, 0.2, bound=6, kinks=1).nearest is None
    with pytest.raises(tp.VerificationError, match="structure allows 1"):
        rank_at(values, 0.1, 0.2, bound=1)  # two values are certainly above
    assert rank_at(values, 1e-3, 0.4, bound=6).interval == (2, 2)
    assert rank_at(np.zeros(3), 0.0, 0.0, bound=3).interval == (0, 0)


def test_one_percent_of_a_large_rank_is_an_interval_and_no_more():
    values = np.r_[np.ones(990), np.full(10, 0.2), np.zeros(50)]
    assert rank_at(values, 0.1, 0.2, 1050).interval == (990, 1000)
    assert rank_at(values, 0.1, 0.2, 1050).flag == "interval"
    values = np.r_[np.ones(989), np.full(11, 0.2), np.zeros(50)]
    assert rank_at(values, 0.1, 0.2, 1050).flag == "ambiguous"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=40), st.floats(1e-7, 0.1), st.floats(1e-6, 1.0))
def test_nearest_certain_threshold_has_no_value_within_the_floor(sigma, floor, tau):
    values = np.sort(np.array(sigma))[::-1]
    nearest = nearest_certain(values, floor, tau)
    assert nearest is not None  # above the largest value there is always one
    assert rank_at(values, floor, nearest, bound=len(values)).flag == "certified"
    grid = np.geomspace(max(floor, 1e-7), 2, 4000)
    certain = grid[np.min(np.abs(values[:, None] - grid), axis=0) > floor]
    closest = np.min(np.abs(np.log(certain / tau)), initial=np.inf)
    assert abs(np.log(nearest / tau)) <= closest + 1e-9


def test_cliff_and_knees_of_a_made_spectrum():
    rng = np.random.default_rng(0)
    top = 10 * np.exp(-np.cumsum(rng.exponential(0.01, 30)))
    rest = 0.5 * np.exp(-np.cumsum(rng.exponential(0.01, 400)))
    values = np.r_[top, rest, np.full(100, 1e-17)]
    found = knees(values, 1e-12)
    assert [k.index for k in found] == [30]
    assert found[0].ratio == pytest.approx(top[-1] / rest[0])
    assert found[0].chance < 1e-10
    drop = cliff(values, 1e-12)
    assert drop.index == 430
    assert drop.ratio == pytest.approx(rest[-1] / 1e-12)
    assert cliff(values[:430], 1e-12) is None
    assert cliff(np.zeros(3), 1e-12) is None


@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 12, 30])
def test_a_fall_spread_over_several_values_is_one_knee(width):
    """The first tens of values stand an order above the rest, however abrupt the way down is."""
    falls = np.random.default_rng(0).exponential(0.01, 600)
    falls[29 : 29 + width] += np.log(10) / width
    (found,) = knees(np.exp(-np.cumsum(np.r_[0, falls])), 1e-12)
    assert (found.index, found.width) == (30, width)
    assert found.ratio == pytest.approx(10, rel=0.4)
    assert found.chance < 1e-3


def test_several_knees_are_told_apart():
    falls = np.random.default_rng(4).exponential(0.01, 900)
    falls[[19, 199, 499]] = np.log([3, 8, 5])
    found = knees(np.exp(-np.cumsum(np.r_[0, falls])), 1e-12)
    assert [(k.index, round(k.ratio, 6)) for k in found] == [(200, 8), (500, 5), (20, 3)]


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_smooth_spectra_have_no_knees(power):
    rng = np.random.default_rng(0)
    graded = np.linalg.svd(rng.standard_normal((300, 300)) * np.arange(1.0, 301) ** -power, compute_uv=False)
    for values in (graded, np.arange(1.0, 501) ** -power, np.exp(-np.arange(500) / (20 * power))):
        assert knees(values, 1e-300) == ()


def test_chance_falls_are_not_knees():
    rng = np.random.default_rng(1)
    false = sum(len(knees(np.exp(-np.cumsum(rng.exponential(0.05, 300))), 0.0)) for _ in range(100))
    assert false <= 4  # one is expected in 100 spectra


def test_knees_ignore_the_hard_edge_of_a_random_matrix():
    values = np.linalg.svd(np.random.default_rng(2).standard_normal((300, 300)), compute_uv=False)
    assert knees(values, 1e-12) == ()


def test_measures_of_known_spectra():
    flat = measures(np.ones(50))
    assert flat.stable_rank == pytest.approx(50)
    assert flat.effective_rank == pytest.approx(50)
    assert flat.participation == pytest.approx(50)
    assert flat.energy_ranks == (45, 50, 50)
    single = measures(np.r_[1e200, np.zeros(5)])
    assert (single.stable_rank, single.effective_rank, single.participation) == (1, 1, 1)
    assert single.energy_ranks == (1, 1, 1)
    assert measures(np.zeros(4)).energy_ranks == (0, 0, 0)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (40, 11), (2, 2)])
@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200, 0.0])
def test_norm2_is_the_largest_singular_value(shape, scale):
    E = np.random.default_rng(3).standard_normal(shape) * scale
    true = np.linalg.svd(E, compute_uv=False)[0]
    assert true <= norm2(E) <= true * (1 + 1e-9)


def test_floor_adds_up():
    floor = Floor((Part("a", 1e-3, "x", "certain"), Part("b", 2e-3, "y", "assumed")), 1.0)
    assert floor.total == pytest.approx(3e-3)


@pytest.mark.parametrize("kind", ["mlp", "attn", "layer", "model"])
def test_the_float32_floor_covers_the_true_error(hf_model, kind):
    """float32 against float64 at the same x and pattern: Weyl with the measured floor, value by value."""
    layer = None if kind == "model" else 1
    block = tp.block(tp.load_model(hf_model, dtype="float32"), kind, layer=layer, token_ids=IDS)
    J, exact = tp.jacobian(block), tp.jacobian(block.in_precision(torch.float64)).dense()
    true = torch.linalg.svdvals(exact).numpy()
    S = tp.spectrum(J)
    assert S.values.dtype == np.float32
    assert np.abs(S.values - true).max() <= S.floor.total
    assert S.floor.total <= 1e-4 * true[0]
    error = float(torch.linalg.matrix_norm(J.dense().double() - exact, 2))
    part = S.floor.parts[0].bound
    assert error * (1 - 1e-6) <= part <= 1.5 * error


@pytest.mark.parametrize("kind", ["mlp", "attn", "layer", "model"])
def test_the_float64_error_is_about_the_scaled_float32_error(hf_model, kind):
    """Where nothing saturates: two measurements of the same rounding, 29 bits apart."""
    layer = None if kind == "model" else 1
    block = tp.block(tp.load_model(hf_model), kind, layer=layer, token_ids=IDS)
    J, coarse = tp.jacobian(block), tp.jacobian(block.in_precision(torch.float32)).dense()
    error = 2.0**-29 * float(torch.linalg.matrix_norm(coarse.double() - J.dense(), 2))
    S = tp.spectrum(J)
    part = S.floor.parts[0].bound
    assert error / 8 <= part <= 8 * error
    assert all(p.bound > 0 for p in (S.floor.parts[0], S.floor.parts[2]))
    assert S.floor.total < 1e-12 * S.values[0]


@pytest.mark.parametrize("kind", ["layer", "model"])
@pytest.mark.parametrize("norm", [True, False])
def test_bounds_of_layers_and_models(hf_model, kind, norm):
    """A LayerNorm at the output takes one direction a token: in post-norm models, and in `model` with the final norm."""
    if kind == "layer" and not norm:
        pytest.skip("a layer always contains its norms")
    model = tp.load_model(hf_model)
    block = tp.block(model, kind, layer=0 if kind == "layer" else None, token_ids=IDS, norm=norm)
    place = place_of(model.config)
    post_norm = not place.pre_norm(model.config)
    final = place.final_norm(hf_model) is not None and kind == "model" and norm
    d = block.x.shape[1] - (1 if post_norm or final else 0)
    S = tp.spectrum(tp.jacobian(block))
    assert S.evidence.bounds[0].rank == 7 * d
    assert 7 * (d - 2) <= int(np.sum(S.values > S.floor.total)) <= 7 * d  # LayerNorms shrink one more, to ε


def test_relu_rank_is_the_number_of_active_units(small_opt):
    hf = copy.deepcopy(small_opt)
    with torch.no_grad():
        hf.decoder.layers[1].fc1.bias -= 1  # some tokens have more active units than width, some fewer
    block = tp.block(tp.load_model(hf), "mlp", layer=1, token_ids=IDS)
    S = tp.spectrum(tp.jacobian(block))
    parts = block.layers[0]
    active = (parts.up(parts.mlp_norm(block.x)) > 0).sum(-1)
    expected = int(torch.minimum(active, torch.tensor(20)).sum())
    assert S.evidence.active == tuple(active.tolist())
    assert S.evidence.bounds[0].rank == expected
    assert S.rank.interval == (expected, expected)
    assert S.rank.flag == "certified"
    assert "active units" in S.evidence.bounds[0].reason


def test_head_rank_is_at_most_tokens_times_d_head(small_opt):
    S = tp.spectrum(tp.jacobian(tp.block(tp.load_model(small_opt), "head", layer=0, head=1, token_ids=IDS)))
    assert S.evidence.bounds[0].rank == 7 * 7
    assert S.rank.hi <= 7 * 7
    assert S.rank.flag == "certified"


def test_a_layer_norm_takes_one_direction_a_token(small_opt):
    S = tp.spectrum(tp.jacobian(tp.block(tp.load_model(small_opt), "attn", layer=0, token_ids=IDS)))
    assert S.evidence.bounds[0].rank == 7 * 20
    assert np.sum(S.values > S.floor.total) <= 7 * 20
    bare = tp.block(tp.load_model(small_opt), "attn", layer=0, token_ids=IDS, norm=False)
    assert tp.spectrum(tp.jacobian(bare)).evidence.bounds[0].rank == 7 * 21


@pytest.mark.parametrize(("offset", "expected"), [(0.0, 1), (1e-17, 1), (-1e-17, 1), (1e-9, 0)])
def test_a_unit_at_zero_is_a_kink_and_widens_the_interval(small_opt, offset, expected):
    hf = copy.deepcopy(small_opt)
    clean = tp.block(tp.load_model(hf), "mlp", layer=1, token_ids=IDS)
    parts = clean.layers[0]
    with torch.no_grad():
        h = parts.mlp_norm(clean.x[3])
        up = hf.decoder.layers[1].fc1
        up.weight[5] = 0
        up.weight[5, :2] = torch.stack([h[1], -h[0]])
        up.bias[5] = -torch.dot(up.weight[5], h) + offset
    block = tp.block(tp.load_model(hf), "mlp", layer=1, token_ids=IDS)
    before = units(clean).kinks
    found = units(block)
    assert before == 0
    assert found.kinks == expected
    S = tp.spectrum(tp.jacobian(block))
    assert S.rank.hi - S.rank.lo <= 2 * expected
    assert (S.rank.flag == "certified") == (expected == 0)


@settings(max_examples=20, deadline=None)
@given(st.integers(-300, 300))
def test_scaling_by_a_power_of_two_changes_values_and_floor_alone(power):
    W = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    W[:, 0] = W[:, 1]
    x = torch.zeros(1, 6, dtype=torch.float64)
    plain, scaled = (tp.spectrum(tp.jacobian(lambda x, s=s: x @ (W * s).T, x)) for s in (1.0, 2.0**power))
    assert np.array_equal(plain.values * 2.0**power, scaled.values)
    assert scaled.floor.total == pytest.approx(plain.floor.total * 2.0**power, rel=1e-12, abs=0)
    assert plain.rank.interval == scaled.rank.interval == (5, 5)
    assert plain.labels.tolist() == scaled.labels.tolist()


def test_rank_curve_and_bad_thresholds(small_opt):
    S = tp.spectrum(tp.jacobian(tp.block(tp.load_model(small_opt), "mlp", layer=0, token_ids=IDS)))
    for tau in (S.values[0] * 2, S.values[3] * 0.999, 0.0):
        rank = S.rank_at(tau)
        assert rank.lo <= int(np.sum(S.values > tau + S.floor.total))
        assert rank.lo <= rank.hi <= S.evidence.bounds[0].rank
    assert S.rank_at(float(S.values[0]) * 2).interval == (0, 0)
    with pytest.raises(tp.InputError, match="a threshold is a number"):
        S.rank_at(-1.0)
    with pytest.raises(tp.InputError, match="a threshold is a number"):
        S.rank_at(float("nan"))


@pytest.mark.parametrize("k", [150, 200, 260])
def test_energy_bounds_the_rank_where_only_a_subspace_is_known(k):
    """400 values without a gap, of which k are known: what is left of ‖J‖_F² allows only so many above τ."""
    sigma = np.exp(-np.arange(400) / 40.0) + 1e-4
    rest = float(np.sum(sigma[k:] ** 2)) * (1 + 1e-12)
    for tau in (0.05, 0.01, 0.003):
        truth = int(np.sum(sigma > tau))
        rank = rank_at(sigma[:k], 1e-9, tau, bound=400, total=400, rest=rest)
        assert rank.lo <= truth <= rank.hi
        assert rank.hi <= np.sum(sigma[:k] > tau) + rest / tau**2
        assert rank.flag == ("certified" if rank.lo == rank.hi else "not converged")
    assert rank_at(sigma[:k], 1e-9, 0.2, 400, total=400, rest=rest).flag == "certified"


def test_energy_bound_at_its_edges():
    assert above_by_energy(10, np.inf, 0.5) == 10
    assert above_by_energy(10, 1.0, 0.0) == 10
    assert above_by_energy(10, 1.0, 0.5) == 4
    assert above_by_energy(10, 0.99, 0.5) == 3
    assert above_by_energy(10, 0.0, 0.5) == above_by_energy(0, 9.0, 0.5) == 0


def test_leading_values_certify_a_rank_at_a_high_threshold(small_opt):
    """By ‖J‖_F² in closed form: the values that were never computed cannot exceed the threshold."""
    J = tp.jacobian(tp.block(tp.load_model(small_opt), "mlp", layer=1, token_ids=IDS))
    everything, part = tp.spectrum(J), tp.spectrum(J, method="topk", k=80)
    curve = part.rank_curve(np.geomspace(1e-3, 1, 40) * everything.values[0])
    for row in curve.itertuples():
        assert row.lo <= int(np.sum(everything.values > row.tau)) <= row.hi
    assert {"certified", "not converged"} <= set(curve["flag"])
    assert np.all(np.diff(curve["hi"]) <= 0)


def test_rank_curve_is_the_rank_at_each_threshold(small_opt):
    S = tp.spectrum(tp.jacobian(tp.block(tp.load_model(small_opt), "attn", layer=0, token_ids=IDS)))
    curve = S.rank_curve()
    assert list(curve.columns) == ["tau", "lo", "hi", "flag", "confidence"]
    assert curve["tau"].iloc[0] == pytest.approx(S.floor.total, abs=0)
    assert (curve["lo"].iloc[-1], curve["hi"].iloc[-1]) == (0, 0)
    row = curve.iloc[77]
    assert S.rank_at(row["tau"]).interval == (row["lo"], row["hi"])


def test_knees_at_the_top_of_a_long_spectrum():
    """One value far above all others, and twenty: few neighbours tell, and a bulk of thousands must not drown them."""
    rng = np.random.default_rng(5)
    for count, ratio in ((1, 10.0), (20, 8.0)):
        falls = rng.exponential(0.02, 5000) / np.linspace(1, 30, 5000)
        falls[count - 1] = np.log(ratio)
        (found,) = knees(np.exp(-np.cumsum(np.r_[0, falls])), 1e-300)
        assert (found.index, found.width) == (count, 1)
        assert found.ratio == pytest.approx(ratio)
