"""Blocks of the encoders' tiny models, and the oracles that they are held against; `family_blocks.py` has the others'."""

from __future__ import annotations

import tightpass as tp
from oracles.encoder_models import given_of, made
from oracles.encoder_oracles import ROWS, Oracle
from tightpass.models.loading import Model

models: dict[str, Model] = {}


def loaded(name: str) -> Model:
    """Loaded once; never changed."""
    if name not in models:
        models[name] = tp.load_model(made(name))
    return models[name]


def block_of(name, kind, layer=1, norm=True):
    head = loaded(name).shape.layers[0].heads - 1 if kind == "head" else None
    return tp.block(loaded(name), kind, layer, head=head, norm=norm, **given_of(name))


def oracle_of(name, block, layer=1):
    model, call = loaded(name), block.calls[0]["context"]
    shape = model.shape.layers[layer]
    return Oracle(ROWS[name], model.config, model.base, block.layers[0].layer, layer, shape.heads, call.rotary)
