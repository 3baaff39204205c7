"""Every family that is served by automatic differentiation, against layers written out from their formulas."""

from __future__ import annotations

import pytest
import torch
from oracles import encoder_models
from oracles.family_blocks import KINDS, block_of, function_of, loaded, oracle_of
from oracles.family_models import CASES
from oracles.family_oracles import ROWS

import tightpass as tp
from tightpass.models.families.base import FAMILIES
from tightpass.models.options import layers_with


def largest_difference(name, kind, layer=1, norm=True):
    """Of J from jacrev of the oracle, in σ₁; the values as well."""
    block = block_of(name, kind, layer, norm)
    function = function_of(oracle_of(name, block, layer), block)
    y = function(block.x)
    assert float((block(block.x) - y).abs().max()) <= 1e-12 * float(y.abs().max())
    true = torch.func.jacrev(function)(block.x).reshape(y.numel(), -1)
    size = float(torch.linalg.matrix_norm(true, 2))
    assert size > 0.01
    return float((tp.jacobian(block).dense() - true).abs().max()) / size


def test_every_family_has_a_tiny_model_and_an_oracle():
    assert CASES.keys() == ROWS.keys()
    encoders = {kind for kind, _ in encoder_models.CASES.values()}
    assert {kind for kind, _ in CASES.values()} == FAMILIES.keys() - {"opt", "bert"} - encoders


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_jacobians_are_those_of_the_formulas(name, kind):
    for layer in layers_with(loaded(name).shape, kind):
        assert largest_difference(name, kind, layer) <= 1e-12


@pytest.mark.parametrize("kind", ["mlp", "attn", "head"])
@pytest.mark.parametrize("name", ["granite", "gemma2", "olmo2", "cohere"])
def test_bare_modules_are_without_norms_and_multipliers(name, kind):
    assert largest_difference(name, kind, norm=False) <= 1e-12
