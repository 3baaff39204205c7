"""Blocks of the families' tiny models, and the oracles that they are held against."""

from __future__ import annotations

import torch

import tightpass as tp
from oracles.decoder_oracles import oracle_for
from oracles.family_models import made
from oracles.family_oracles import ROWS, tables_of
from tightpass.models.loading import Model

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


def difference(block, function):
    """Of J from jacrev of the oracle, in σ₁. Raises AssertionError where values differ, or J is next to nothing."""
    y = function(block.x)
    assert float((block(block.x) - y).abs().max()) <= 1e-12 * float(y.abs().max())
    true = torch.func.jacrev(function)(block.x).reshape(y.numel(), -1)
    size = float(torch.linalg.matrix_norm(true, 2))
    assert size > 0.01
    return float((tp.jacobian(block).dense() - true).abs().max()) / size
