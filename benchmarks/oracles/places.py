"""Where the oracles find the pieces of each family's models: written by hand, apart from the package's own table.

To add a family, add it to `PLACES`, and small models of it to `small_models.HF_MODELS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Pieces:
    """Of one layer; `first` and `second` are the norms of the attention and of the MLP, in front or on the sums."""

    query: Any
    key: Any
    value: Any
    projection: Any
    up: Any
    act: Any
    down: Any
    first: nn.LayerNorm
    second: nn.LayerNorm


@dataclass(frozen=True)
class Place:
    """Of one family: the layers of a model, the pieces of a layer, the norm after the last, and what configurations decide."""

    layers: Callable[[Any], Any]
    pieces: Callable[[Any], Pieces]
    final_norm: Callable[[Any], nn.LayerNorm | None]
    pre_norm: Callable[[Any], bool]
    causal: Callable[[Any], bool]
    activation: Callable[[Any], str]


def opt(layer: Any) -> Pieces:
    a = layer.self_attn
    norms = layer.self_attn_layer_norm, layer.final_layer_norm
    return Pieces(a.q_proj, a.k_proj, a.v_proj, a.out_proj, layer.fc1, layer.activation_fn, layer.fc2, *norms)


def bert(layer: Any) -> Pieces:
    a, own = layer.attention, layer.attention.self
    up, act = layer.intermediate.dense, layer.intermediate.intermediate_act_fn
    norms = a.output.LayerNorm, layer.output.LayerNorm
    return Pieces(own.query, own.key, own.value, a.output.dense, up, act, layer.output.dense, *norms)


PLACES = {
    "opt": Place(
        layers=lambda base: base.decoder.layers,
        pieces=opt,
        final_norm=lambda base: base.decoder.final_layer_norm,
        pre_norm=lambda config: config.do_layer_norm_before,
        causal=lambda config: True,
        activation=lambda config: config.activation_function,
    ),
    "bert": Place(
        layers=lambda base: base.encoder.layer,
        pieces=bert,
        final_norm=lambda base: None,
        pre_norm=lambda config: False,
        causal=lambda config: config.is_decoder,
        activation=lambda config: config.hidden_act,
    ),
}


def place_of(config: Any) -> Place:
    return PLACES[config.model_type]
