"""Every comparison of a value with a threshold, against exact fractions: values of either precision, doubles as thresholds."""

from __future__ import annotations

from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.small_models import opt

import tightpass as tp
from tightpass.rank.floor import Floor
from tightpass.rank.interval import above_by_energy, labels, nearest_certain, rank_at
from tightpass.rank.knee import cliff, knees
from tightpass.rank.records import Part
from tightpass.rank.rounding import add_down, add_up, below

DTYPES = (np.float32, np.float64)
SIZES = st.floats(1e-12, 1e3)


def exact_interval(values, floor, tau):
    """#{σ̂ > τ + f} and #{σ̂ > τ − f} in rational arithmetic."""
    low, high = Fraction(tau) + Fraction(floor), Fraction(tau) - Fraction(floor)
    exact = [Fraction(float(value)) for value in values]
    return sum(value > low for value in exact), sum(value > high for value in exact)


@st.composite
def spectra(draw):
    """Values of either precision, a floor, and a threshold that is often a rounding away from where a count changes."""
    dtype = draw(st.sampled_from(DTYPES))
    values = np.sort(np.array(draw(st.lists(SIZES, min_size=1, max_size=8)), dtype=dtype))[::-1]
    floor = draw(st.floats(1e-18, 1e-2))
    tau = draw(SIZES)
    if draw(st.booleans()):
        near = float(values[draw(st.integers(0, len(values) - 1))])
        tau = abs(near + draw(st.sampled_from((-1, 0, 1))) * floor)
    for _ in range(draw(st.integers(0, 2))):
        tau = float(np.nextafter(tau, draw(st.sampled_from((0.0, np.inf)))))
    return values, floor, tau


@settings(max_examples=400, deadline=None)
@given(spectra())
def test_ranks_are_those_of_rational_arithmetic(case):
    values, floor, tau = case
    assert rank_at(values, floor, tau, len(values)).interval == exact_interval(values, floor, tau)


@settings(max_examples=400, deadline=None)
@given(spectra())
def test_the_nearest_threshold_is_certain_in_rational_arithmetic(case):
    values, floor, tau = case
    nearest = nearest_certain(values, floor, tau)
    low, high = exact_interval(values, floor, nearest)
    assert low == high
    assert nearest >= floor
    assert rank_at(values, floor, nearest, len(values)).interval == (low, high)


@settings(max_examples=200, deadline=None)
@given(spectra())
def test_labels_and_cliff_are_those_of_rational_arithmetic(case):
    values, floor, tau = case
    for f in (floor, tau, tau / 3):
        exact = [Fraction(float(value)) for value in values]
        expected = [(value > Fraction(f)) + (value > 3 * Fraction(f)) for value in exact]
        assert labels(values, f).tolist() == expected
        count = sum(value > Fraction(f) for value in exact)
        fall = cliff(values, f)
        assert (fall is None) == (count in (0, len(values)))
        assert fall is None or fall.index == count


FINITE = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)


@settings(max_examples=400, deadline=None)
@given(FINITE, FINITE)
def test_sums_are_rounded_as_they_say(a, b):
    exact = Fraction(a) + Fraction(b)
    down, up, less = (float(f(a, b)) for f in (add_down, add_up, below))
    assert Fraction(down) <= exact <= Fraction(up)
    assert Fraction(less) < exact
    assert Fraction(float(np.nextafter(down, np.inf))) > exact
    assert Fraction(float(np.nextafter(up, -np.inf))) < exact
    assert Fraction(float(np.nextafter(less, np.inf))) >= exact


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=6))
def test_a_floor_is_never_less_than_its_parts_together(bounds):
    floor = Floor(tuple(Part(str(i), bound, "given", "certain") for i, bound in enumerate(bounds)), 0.0)
    exact = sum(Fraction(bound) for bound in bounds)
    assert exact <= Fraction(floor.total) <= exact * (1 + len(bounds) * Fraction(2) ** -52)


def test_known_places_where_a_float32_threshold_goes_wrong():
    """Just below a value of 1: in float32 the threshold rounds to 1 itself, and 1 is not above it."""
    values, tau = np.array([2, 1, 0.5], dtype=np.float32), float(np.nextafter(1.0, 0.0))
    assert rank_at(values, 0.0, tau, 3).interval == (2, 2)
    assert rank_at(values, 1e-9, tau, 3).interval == (1, 2)
    assert cliff(values, tau).index == 2
    assert labels(values, tau).tolist() == [1, 1, 0]
    assert labels(values[1:2], float(np.nextafter(1 / 3, 0.0))).tolist() == [2]


def test_knees_are_sought_above_the_floor_as_it_is():
    """In float32 a floor a rounding below the last value would take it away."""
    falls = np.full(40, 0.01)
    falls[-9] = np.log(10)
    values = np.exp(-np.cumsum(np.r_[0, falls])).astype(np.float32)
    under = float(np.nextafter(float(values[-1]), 0.0))
    assert [fall.index for fall in knees(values, under)] == [fall.index for fall in knees(values, 0.0)] == [32]


def test_energy_that_is_just_enough_is_enough():
    """3·τ² rounds down: a quotient in float64 says 2 values, while 3 can exceed τ."""
    for tau in np.random.default_rng(0).uniform(1e-3, 1, 2000):
        tau = float(tau)
        for count in (3, 7, 49):
            least = count * Fraction(tau) ** 2
            rest = float(least) if Fraction(float(least)) >= least else float(np.nextafter(float(least), np.inf))
            assert above_by_energy(100, rest, tau) == count
    assert above_by_energy(100, 1.0, 1e-200) == 100
    assert above_by_energy(100, 1e300, 5e-324) == 100


# ---- a block whose true singular values are known to 50 digits


def integer_mlp(seed, d=24, d_ff=32, spread=3):
    """An MLP of small integers, which float32 multiplies exactly: its Jacobian's only error is its SVD's."""
    hf = opt(hidden_size=d, word_embed_proj_dim=d, num_attention_heads=2, ffn_dim=d_ff)
    rng = np.random.default_rng(seed)
    layer = hf.decoder.layers[1]
    with torch.no_grad():
        for weight in (layer.fc1.weight, layer.fc2.weight):
            weight.copy_(torch.from_numpy(rng.integers(-spread, spread + 1, tuple(weight.shape)).astype(float)))
        layer.fc1.bias[:] = torch.from_numpy(np.where(rng.random(d_ff) < 0.9, 500.0, -500.0))
    return tp.block(tp.load_model(hf, dtype="float32"), "mlp", layer=1, token_ids=[5], norm=False)


@pytest.mark.parametrize("seed", [0, 1])
def test_an_integer_mlp_in_float32_at_doubles_next_to_its_true_values(seed):
    block = integer_mlp(seed)
    J = tp.jacobian(block)
    S = tp.spectrum(J)
    assert S.values.dtype == np.float32
    with mpmath.workdps(50):
        true = mpmath.svd_r(mpmath.matrix(J.dense().double().numpy().tolist()), compute_uv=False)
        sigma = sorted(true, reverse=True)
        for value in sigma:
            near = float(value)
            for tau in (np.nextafter(near, 0), near, np.nextafter(near, np.inf)):
                rank = S.rank_at(tau)
                assert rank.lo <= sum(s > float(tau) for s in sigma) <= rank.hi
