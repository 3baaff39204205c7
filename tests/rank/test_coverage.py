"""The interval holds the truth, the flag says what it should, the labels are right; and each of these tests can fail."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from oracles import known

from tightpass.rank.floor import Floor
from tightpass.rank.interval import Rank, rank_at


@pytest.fixture(scope="module", params=["float64", "float32"])
def cases(request):
    return list(known.cases(dtype=request.param))


def test_there_are_enough_cases_of_every_kind(cases):
    assert len(cases) >= 500
    assert {case.decay for case in cases} == {decay.__name__ for decay in known.DECAYS}
    assert sum(case.gap is not None and case.gap >= 10 for case in cases) >= 200
    assert sum(case.clear for case in cases) >= 200


def test_the_true_rank_lies_in_the_interval(cases):
    assert known.uncovered(cases) == []


def test_gaps_of_ten_floors_are_certified(cases):
    assert known.uncertified(cases) == []


def test_clear_spectra_are_never_ambiguous(cases):
    assert known.ambiguous(cases) == []


def test_values_rounded_to_float32_at_doubles_next_to_the_truth():
    """The floor is the rounding itself, less than the distance of two float32 numbers."""
    rng = np.random.default_rng(0)
    for _ in range(400):
        sigma = np.sort(10 ** rng.uniform(-6, 1, 12))[::-1]
        values = sigma.astype(np.float32)
        floor = float(np.abs(values - sigma).max())
        for near in sigma[:10]:
            tau = float(np.nextafter(near, rng.choice([0, np.inf])))
            rank = rank_at(values, floor, tau, len(values))
            assert rank.lo <= np.sum(sigma > tau) <= rank.hi
            assert rank_at(values, floor, rank.nearest, len(values)).flag == "certified"


def test_labels_are_true(cases):
    assert known.mislabelled(cases) == []


# ---- broken variants, which the tests above must reject


def with_floor(factor):
    def ranker(s, tau):
        parts = tuple(replace(part, bound=part.bound * factor) for part in s.floor.parts)
        return replace(s, floor=Floor(parts, s.floor.conventional)).rank_at(tau)

    return ranker


def shifted(low, high):
    def ranker(s, tau):
        rank = s.rank_at(tau)
        return Rank(tau, rank.lo + low, rank.hi + high, rank.flag, rank.nearest, rank.confidence)

    return ranker


def swapped(first, second):
    def labels(s):
        named = s.labels
        return np.where(named == first, second, np.where(named == second, first, named))

    return labels


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.9])
def test_a_floor_that_is_too_small_is_noticed(cases, factor):
    assert known.uncovered(cases, with_floor(factor))


@pytest.mark.parametrize("factor", [30.0, 1000.0])
def test_a_floor_that_is_too_large_is_noticed(cases, factor):
    assert known.uncertified(cases, with_floor(factor))


@pytest.mark.parametrize(("low", "high"), [(1, 1), (-1, -1), (1, 0), (0, -1)])
def test_an_interval_that_is_off_by_one_is_noticed(cases, low, high):
    assert known.uncovered(cases, shifted(low, high))


@pytest.mark.parametrize(("first", "second"), [("noise", "signal"), ("noise", "doubtful"), ("doubtful", "signal")])
def test_labels_that_are_swapped_are_noticed(cases, first, second):
    assert known.mislabelled(cases, swapped(first, second))


def test_a_flag_that_is_always_ambiguous_is_noticed(cases):
    def ranker(s, tau):
        return replace(s.rank_at(tau), flag="ambiguous")

    assert known.uncertified(cases, ranker)
    assert known.ambiguous(cases, ranker)
