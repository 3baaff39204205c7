"""The measured floor against the true error, by Jacobians to 40 digits."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import truth
from oracles.small_models import HF_MODELS

from tightpass.errors import InputError
from tightpass.rank.floor import Floor
from tightpass.rank.records import Part

QUICK = [(name, kind, dtype) for name in HF_MODELS for kind in ("mlp", "attn") for dtype in ("float64", "float32")]
ALL = [
    (name, kind, dtype)
    for name in HF_MODELS
    for kind in ("mlp", "attn", "head", "layer")
    for dtype in ("float64", "float32")
]
TOKENS = 3


def of(case, route, tokens=TOKENS):
    return truth.held(*case, route, tokens)


@pytest.mark.parametrize("route", truth.ROUTES)
@pytest.mark.parametrize("case", QUICK, ids="-".join)
def test_the_floor_is_never_below_the_true_error(case, route):
    assert of(case, route).is_never_below()


@pytest.mark.parametrize("route", ["exact", "lanczos"])
@pytest.mark.parametrize("case", QUICK, ids="-".join)
def test_the_floor_is_at_most_ten_times_the_true_error(case, route):
    """Not of topk, whose values are only as good as was asked for, nor of unknown pieces."""
    assert of(case, route).is_tight()


def test_the_floor_is_at_most_four_times_the_true_error_in_the_median():
    assert np.median([of(case, "exact").ratio for case in QUICK]) <= 4


@pytest.mark.slow
@pytest.mark.parametrize("route", truth.ROUTES)
@pytest.mark.parametrize("case", ALL, ids="-".join)
def test_the_floor_over_all_kinds_and_more_tokens(case, route):
    found = of(case, route, tokens=5)
    assert found.is_never_below()
    assert found.is_tight() or route in ("perturbed", "topk")


@pytest.mark.parametrize("factor", [0.1, 0.3])
def test_a_floor_that_is_too_small_is_noticed(factor):
    assert not all(of(case, "exact").is_never_below(factor) for case in QUICK)


def test_a_floor_that_is_too_large_is_noticed():
    assert not all(of(case, "exact").is_tight(12.0) for case in QUICK)


@pytest.mark.parametrize("bound", [float("inf"), float("nan"), 1e308])
def test_an_infinite_floor_is_said_in_words(bound):
    """Also one whose double, the default threshold, is."""
    parts = Part("SVD", 1.0, "measured", "certain"), Part("model arithmetic", bound, "measured: by products", "certain")
    with pytest.raises(
        InputError, match=r"the floor is infinite, since its part model arithmetic .*by products.*rescale"
    ):
        Floor(parts, 1.0)
