"""Random small blocks and functions against 200-digit Jacobians; and planted faults, which the same checks must see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import extended, fuzz_cases, fuzz_oracle, fuzzing

import tightpass as tp

OPEN = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
FOR_PLANTS = range(80)


@st.composite
def cases(draw):
    return fuzz_cases.case(lambda options: draw(st.sampled_from(options)))


@settings(max_examples=100, **OPEN)
@given(cases())
def test_no_wrong_number(c):
    outcome = fuzzing.examine(c)
    assert not outcome.faults, f"{outcome.faults}\n{outcome.case}"


def test_no_wrong_number_of_given_seeds():
    outcomes = {s: fuzzing.examine(fuzz_cases.seeded(s)) for s in range(100)}
    assert {s: o.faults for s, o in outcomes.items() if o.faults} == {}
    assert sum(o.refusal is None for o in outcomes.values()) > 90  # not by refusing


@pytest.mark.slow
def test_no_wrong_number_of_three_thousand_seeds():
    outcomes = {s: fuzzing.examine(fuzz_cases.seeded(s)) for s in range(3000)}
    assert {s: o.faults for s, o in outcomes.items() if o.faults} == {}
    assert sum(o.refusal is None for o in outcomes.values()) > 2800  # not by refusing


def test_the_generator_reaches_every_corner():
    drawn = [fuzz_cases.seeded(s) for s in range(3000)]
    for name, options in {
        "family": ("opt", "bert", "function"),
        "dtype": ("float64", "float32"),
        "kind": (*fuzz_cases.BLOCKS, *fuzz_cases.FUNCTIONS),
        "entries": fuzz_cases.ENTRIES,
        "method": ("auto", "topk"),
        "lanczos": (False, True),
        "qk": (1.0, 100.0),
        "pruned": ("none", "rows", "columns", "both"),
        "structure": ("Dense", "BlockDiagonal", "BlockLowerTriangular"),
    }.items():
        assert {getattr(c, name) for c in drawn} >= set(options)
    assert all(c.tokens * c.width <= 16 for c in drawn)


# ---- the oracle against another: central differences in 90 digits


@pytest.mark.parametrize("kind", ["mlp", "attn", "head", "layer"])
@pytest.mark.parametrize("family", ["opt", "bert"])
def test_the_oracle_agrees_with_finite_differences(family, kind):
    c = fuzz_cases.Case(
        family, kind, "float64", 3, 4, 5, "normal", 0.5, heads=2, units=5, layer=0, head=1 if kind == "head" else None,
        activation="gelu" if family == "bert" else "relu", pre_norm=family == "opt", bias=0.2, qk=2.0,
    )  # fmt: skip
    model = fuzz_cases.model(c)
    block = tp.block(tp.load_model(model), kind, layer=0, head=c.head, token_ids=fuzz_cases.token_ids(c))
    seen = fuzz_oracle.layers_of(model)
    with fuzz_oracle.mpmath.workdps(fuzz_oracle.DIGITS):
        f = fuzz_oracle.block_function(seen, kind, 0, c.head, norm=True, residual=False)
        ours = fuzz_oracle.matrix(f(fuzz_oracle.identity(fuzz_oracle.exact(block.x))))
        other = extended.jacobian(block)
        assert max(abs(v) for v in (ours - other).ravel()) < 1e-40 * max(abs(v) for v in other.ravel())


@pytest.mark.parametrize("name", fuzz_cases.FUNCTIONS)
def test_the_oracle_agrees_with_automatic_differentiation(name):
    c = fuzz_cases.Case("function", name, "float64", 3, 4, 7, "normal", 0.5)
    given = fuzz_cases.function(c)
    y = given.apply(fuzz_oracle.Exact, fuzz_oracle.identity(fuzz_oracle.exact(given.x)),
                    *map(fuzz_oracle.exact, given.weights))  # fmt: skip
    J = torch.func.jacrev(given)(given.x).reshape(y.value.size, -1).numpy()
    assert np.allclose(fuzz_oracle.matrix(y).astype(float), J, rtol=1e-13, atol=1e-13)


# ---- planted faults


def shifted(low, high):
    def ranker(s, tau):
        rank = s.rank_at(tau)
        return replace(rank, lo=rank.lo + low, hi=rank.hi + high)

    return ranker


def compared_in_float32(s, tau):
    """As NumPy compares float32 values with a Python number."""
    rank, values, floor = s.rank_at(tau), s.values.astype(np.float32), s.floor.total
    lo = int(np.sum(values > np.float32(tau + floor)))
    hi = max(lo, int(np.sum(values > np.float32(tau - floor))))
    return replace(rank, lo=lo, hi=min(hi, max(lo, s.evidence.bounds[0].rank)))


@pytest.fixture(scope="module")
def found():
    """Cases without a fault, to plant one; with all values and no kinks, so that an interval is tight almost everywhere."""
    pairs = []
    for c in map(fuzz_cases.seeded, FOR_PLANTS):
        outcome = fuzzing.examine(c)
        if outcome.refusal or outcome.faults or outcome.kinks or c.method == "topk":
            continue
        pairs.append((c, fuzzing.pair(c)))
    assert len(pairs) > len(FOR_PLANTS) / 4
    return pairs


def noticed(found, ranker=fuzzing.as_printed, factor=1.0):
    changed = [(c, replace(pair, spectrum=fuzzing.with_floor(pair.spectrum, factor))) for c, pair in found]
    return sum(bool(fuzzing.faults(c, pair, ranker)) for c, pair in changed)


def test_a_floor_that_is_too_small_is_noticed(found):
    assert noticed(found, factor=0.3) > 5


@pytest.mark.parametrize("shift", [(1, 1), (-1, -1), (1, 0), (0, -1)])
def test_a_rank_off_by_one_is_noticed(found, shift):
    assert noticed(found, shifted(*shift)) > 0.9 * len(found)


def test_thresholds_rounded_to_float32_are_noticed(found):
    assert noticed([(c, pair) for c, pair in found if c.dtype == "float32"], compared_in_float32) >= 3
