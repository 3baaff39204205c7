"""Every family that is served by automatic differentiation, against layers written out from their formulas."""

from __future__ import annotations

import pytest
import torch
from decoder_oracles import oracle_for
from family_models import CASES, made
from family_oracles import ROWS, tables_of

import tightpass as tp
from tightpass.models.families.base import FAMILIES
from tightpass.models.loading import Model
from tightpass.models.options import layers_with

IDS = [5, 17, 2, 30, 11, 7]
KINDS = ("mlp", "attn", "head", "layer")
models: dict[str, Model] = {}


def loaded(name: str) -> Model:
    """Loaded once; never changed."""
    if name not in models:
        models[name] = tp.load_model(made(name))
    return models[name]


def block_of(name, kind, layer=1, norm=True):
    return tp.block(
        loaded(name), kind, layer, head=2 % heads(name) if kind == "head" else None, token_ids=IDS, norm=norm
    )


def heads(name):
    return loaded(name).shape.layers[1].heads


def oracle_of(name, block, layer=1):
    parts, row = block.layers[0], ROWS[name]
    call = block.calls[0][parts.mixing]
    return oracle_for(row)(row, loaded(name).config, parts.layer, layer, tables_of(parts.context, call))


def function_of(oracle, block):
    norm = block.options.norm
    return {
        "mlp": lambda x: oracle.mlp(x, norm),
        "attn": lambda x: oracle.attention(x, norm),
        "head": lambda x: oracle.head(x, block.options.head, norm),
        "layer": oracle.whole,
    }[block.kind]


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
    assert {kind for kind, _ in CASES.values()} == FAMILIES.keys() - {"opt", "bert"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_jacobians_are_those_of_the_formulas(name, kind):
    for layer in layers_with(loaded(name).shape, kind):
        assert largest_difference(name, kind, layer) <= 1e-12


@pytest.mark.parametrize("kind", ["mlp", "attn", "head"])
@pytest.mark.parametrize("name", ["granite", "gemma2", "olmo2", "cohere"])
def test_bare_modules_are_without_norms_and_multipliers(name, kind):
    assert largest_difference(name, kind, norm=False) <= 1e-12
