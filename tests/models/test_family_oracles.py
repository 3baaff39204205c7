"""Every family that is served by automatic differentiation, against layers written out from their formulas."""

from __future__ import annotations

import pytest
from oracles import encoder_models
from oracles.family_blocks import KINDS, block_of, difference, function_of, loaded, oracle_of
from oracles.family_models import CASES
from oracles.family_oracles import ROWS

from tightpass.models.families.base import FAMILIES
from tightpass.models.options import layers_with


def largest_difference(name, kind, layer=1, norm=True):
    block = block_of(name, kind, layer, norm)
    return difference(block, function_of(oracle_of(name, block, layer), block))


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
