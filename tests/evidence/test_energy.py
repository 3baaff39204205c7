"""‖J‖_F² without J, where terms cancel: what it may be off by, against 40 digits."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from oracles import extended, fuzz_cases, fuzzing
from oracles.fuzz_cases import Case
from scipy.stats import chi2

import tightpass as tp
from tightpass.confidence import allowed_energy
from tightpass.evidence import arithmetic
from tightpass.evidence.arithmetic import Difference, frobenius
from tightpass.jacobians.twice.block import twice
from tightpass.rank.records import Evidence


def block_of(
    kind: str, width: int, mean: float, scale: float = 1.0, tokens: int = 3, dtype: str = "float64"
) -> tp.Block:
    """Behind a LayerNorm, which takes all of a derivative but one part in 10⁵ and less where the width is 2."""
    c = Case(
        "opt", kind, dtype, tokens, width, 5, "normal", scale, heads=1, units=5, layer=0, activation="gelu",
        pre_norm=True, bias=0.2, mean=mean,
    )  # fmt: skip
    return tp.block(tp.load_model(fuzz_cases.model(c)), kind, layer=0, token_ids=fuzz_cases.token_ids(c))


def norm_of(block: tp.Block) -> float:
    true = extended.jacobian(block)
    with mpmath.workdps(40):
        return float(mpmath.sqrt(sum(v * v for v in true.ravel())))


@pytest.mark.parametrize("kind", ["mlp", "attn"])
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("mean", [0.0, 100.0])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_norm_of_j_is_at_most_what_is_said(kind, width, mean, dtype):
    block = block_of(kind, width, mean, dtype=dtype)
    s = tp.spectrum(tp.jacobian(block), method="topk", k=1)
    most, true = math.sqrt(s.evidence.energy) + s.evidence.excess, norm_of(block)
    assert true <= most
    if width == 4:
        assert most <= (1 + 1e3 * np.finfo(dtype).eps) * true


@pytest.mark.parametrize("kind", ["mlp", "attn"])
@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_what_cancels_counts_in_full(kind, scale):
    """16·eps·√N of what is left was too small, up to 10⁷ times; of what it is made of, it is not."""
    block = block_of(kind, 2, 0.0, scale)
    form = tp.jacobian(block).form
    off, allowed = abs(form.energy() - norm_of(block) ** 2), allowed_energy(6, "float64")
    assert off > 10 * allowed * form.energy()
    assert off < allowed * form.energy_reach()


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("residual", [False, True])
def test_reach_is_never_below_the_energy(heads, residual):
    c = Case("bert", "attn", "float64", 4, 4, 3, "normal", 1.0, heads=heads, units=5, layer=0, causal=False)
    model = tp.load_model(fuzz_cases.model(c))
    for kind in ("mlp", "attn"):
        block = tp.block(model, kind, layer=0, token_ids=[1, 2, 3, 4], residual=residual)
        form = tp.jacobian(block).form
        assert form.closed
        assert form.energy_reach() >= form.energy() * (1 - 1e-12)


@pytest.mark.parametrize("kind", ["mlp", "attn"])
def test_the_error_of_all_of_j_by_random_vectors(kind):
    J = tp.jacobian(block_of(kind, 4, 0.0, dtype="float32"))
    exact = twice(J.block)
    panels = list(J.panels())
    true = np.linalg.norm(Difference(J, lambda: iter(panels), exact).whole())
    assert true / 3 <= frobenius(J, exact) <= 20 * true


def test_values_that_no_triplet_found_are_in_the_floor():
    """J is 1e-107 and float32's is 0: the triplets look anywhere, and E along them is not all of E."""
    c = Case(
        "bert", "mlp", "float32", 3, 3, 280748, "signs", 1e8, heads=3, units=8, layer=0, activation="tanh", causal=False,
        bias=100.0, repeated=True, pruned="rows", tied=True, plain_norm=True, method="topk",
    )  # fmt: skip
    assert fuzzing.examine(c).faults == []


def test_small_balls():
    """With one direction alone, the hardest case, the mean of the squares is χ² over its degrees of freedom."""
    missed = chi2.cdf(arithmetic.GAUSSIANS * arithmetic.SMALL_BALL, arithmetic.GAUSSIANS)
    assert arithmetic.CHANCE / 10 < missed <= arithmetic.CHANCE


def test_an_excess_is_stored_and_read():
    s = tp.spectrum(tp.jacobian(block_of("attn", 4, 0.0)), method="topk", k=2)
    again = Evidence.from_dict(s.evidence.as_dict())
    assert again.excess == s.evidence.excess > 0
    assert "excess" not in tp.spectrum(tp.jacobian(block_of("attn", 4, 0.0))).evidence.as_dict()
