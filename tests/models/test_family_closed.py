"""Closed forms of the families, and their products in twice the precision, against layers written out from their formulas."""

from __future__ import annotations

import pytest
import torch
from oracles.family_blocks import IDS, KINDS, block_of, function_of, loaded, oracle_of
from oracles.family_models import CASES

import tightpass as tp
from tightpass.jacobians.twice.block import twice
from tightpass.jacobians.twice.pair import Pair, of
from tightpass.models.families.base import FAMILIES
from tightpass.models.options import layers_with

APART = {("olmo2", "head"), ("olmo3", "head")}
"""Heads whose queries are normed together with those of others."""
CLIPPED = {("olmo", kind) for kind in ("attn", "head", "layer")}
"""Queries, keys and values are cut off in the tiny model."""


def is_closed(name, kind):
    return kind in FAMILIES[CASES[name][0]].closed and (name, kind) not in APART | CLIPPED


def blocks(kind, *names):
    """Of families that have such blocks in closed form."""
    return [(name, kind) for name in names or CASES if is_closed(name, kind)]


EVERY = [pair for kind in KINDS for pair in blocks(kind)]


def truth(name, kind, layer, norm=True, residual=False):
    block = block_of(name, kind, layer, norm)
    function = function_of(oracle_of(name, block, layer), block)
    N = block.x.numel()
    J = torch.func.jacrev(function)(block.x).reshape(N, N)
    return block, J, float(torch.linalg.matrix_norm(J, 2))


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_closed_forms_are_taken_and_are_those_of_the_formulas(name, kind):
    for layer in layers_with(loaded(name).shape, kind):
        block, true, size = truth(name, kind, layer)
        J = tp.jacobian(block)
        assert J.form.closed
        X = torch.randn(J.shape[1], 3, dtype=J.dtype, generator=torch.Generator().manual_seed(0))
        for mine, theirs in ((J.dense(), true), (J @ X, true @ X), (J.T @ X, true.T @ X)):
            assert float((mine - theirs).abs().max()) <= 1e-12 * max(1.0, float(X.norm())) * size
        if (energy := J.energy()) is not None:
            assert energy == pytest.approx(float(true.square().sum()), rel=1e-11)


@pytest.mark.parametrize("kind", ["mlp", "attn", "head"])
@pytest.mark.parametrize("name", ["granite", "gemma2", "olmo2", "cohere", "gpt2"])
def test_bare_modules_and_residuals(name, kind):
    _, true, size = truth(name, kind, 1, norm=False)
    assert float((tp.jacobian(block_of(name, kind, 1, norm=False)).dense() - true).abs().max()) <= 1e-12 * size
    _, true, size = truth(name, kind, 1)
    head = {"head": 2 % loaded(name).shape.layers[0].heads} if kind == "head" else {}
    block = tp.block(loaded(name), kind, 1, token_ids=IDS, residual=True, **head)
    expected = true + torch.eye(len(true), dtype=true.dtype)
    assert float((tp.jacobian(block).dense() - expected).abs().max()) <= 1e-12 * size


@pytest.mark.parametrize("name", CASES)
def test_whole_models_are_chains_of_closed_layers(name):
    block = tp.block(loaded(name), "model", token_ids=[5, 17, 2, 30])
    J, other = tp.jacobian(block), tp.jacobian(block.function(), block.x)
    assert J.form.closed == is_closed(name, "layer")
    true = other.dense()
    assert float((J.dense() - true).abs().max()) <= 1e-12 * float(torch.linalg.matrix_norm(true, 2))


@pytest.mark.parametrize(("name", "kind"), [*EVERY, *APART])
def test_products_in_twice_the_precision(name, kind):
    """The Jacobian's own, to float64's precision; and adjoint to each other far beyond it."""
    block, true, size = truth(name, kind, 1)
    exact = twice(block)
    assert exact is not None
    g = torch.Generator().manual_seed(0)
    v, w = (torch.randn(1, *block.x.shape, generator=g, dtype=torch.float64) for _ in range(2))
    pushed, pulled = exact.push(of(v)), exact.pull(of(w))
    for mine, theirs in ((pushed, true @ v.flatten()), (pulled, true.T @ w.flatten())):
        assert float((mine.rounded().flatten() - theirs).abs().max()) <= 1e-12 * size * float(v.norm())
    gap = inner(pushed, of(w)) - inner(pulled, of(v))
    assert abs(float(gap.rounded())) <= 1e-22 * size * float(v.norm() * w.norm())


def inner(a: Pair, b: Pair) -> Pair:
    return (a * b).map(lambda part: part.flatten()).sum(0)
