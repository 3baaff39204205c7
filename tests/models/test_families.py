"""What every family in the table promises: it joins these tests by registering, with small models in `small_models.HF_MODELS`
and its pieces in `places.PLACES`, or with a tiny one in `family_models.CASES` or `encoder_models.CASES` and its row in
`family_oracles.ROWS` or `encoder_oracles.ROWS`."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import encoder_models, encoder_oracles, family_models, family_oracles
from oracles.decoder_models import HEADS
from oracles.places import PLACES, place_of
from oracles.small_models import HF_MODELS
from transformers import AutoConfig, PreTrainedConfig

import tightpass as tp
from tightpass.models.families.base import FAMILIES, Sites
from tightpass.models.loading import Model
from tightpass.models.options import layers_with
from tightpass.models.shape import LayerShape, shape_of_config
from tightpass.structure import Structure

IDS = [5, 17, 2, 30, 11, 7]
NAMES = {kind: [name for name, hf in HF_MODELS.items() if hf.config.model_type == kind] for kind in FAMILIES}
TINY = {name: models for models in (family_models, encoder_models) for name in models.CASES}
ROWS = family_oracles.ROWS
for tiny, models in TINY.items():
    NAMES[models.CASES[tiny][0]].append(tiny)


@pytest.fixture(
    scope="module", params=[(kind, name) for kind, names in NAMES.items() for name in names or [None]], ids=str
)
def named(request) -> tuple[str, Model]:
    kind, name = request.param
    assert name is not None, f"the family {kind} has no model in small_models.HF_MODELS or family_models.CASES"
    assert kind in PLACES or name in ROWS or name in encoder_oracles.ROWS, f"the family {kind} has no oracle"
    return name, tp.load_model(HF_MODELS[name] if name in HF_MODELS else TINY[name].made(name))


@pytest.fixture
def model(named) -> Model:
    return named[1]


@pytest.fixture
def given(named) -> dict[str, Any]:
    """What its blocks are handed."""
    name, _ = named
    return encoder_models.given_of(name) if name in encoder_models.CASES else {"token_ids": IDS}


@pytest.fixture(params=HF_MODELS)
def placed(request) -> Model:
    """One of which `places` says where its pieces are."""
    return tp.load_model(HF_MODELS[request.param])


def test_sites_are_modules_of_their_layer_and_those_that_the_oracles_mean(placed):
    model = placed
    place = place_of(model.config)
    for layer, parts in zip(place.layers(model.base), model.parts, strict=True):
        assert parts.layer is layer
        assert {id(module) for _, module in parts.items()} <= {id(module) for module in layer.modules()}
        pieces = place.pieces(layer)
        for name in ("query", "key", "value", "projection", "up", "act", "down"):
            assert getattr(parts, name) is getattr(pieces, name)
        before, after = (parts.attn_norm, parts.mlp_norm), (parts.after_attn, parts.after_mlp)
        norms, none = (pieces.first, pieces.second), (None, None)
        assert (before, after) == ((norms, none) if place.pre_norm(model.config) else (none, norms))
    assert model.final_norm is place.final_norm(model.base)


def test_the_shape_is_that_of_the_pieces(placed):
    model = placed
    config, shape, place = model.config, model.shape, place_of(model.config)
    sizes = len(shape.layers), shape.width, shape.positions
    assert sizes == (config.num_hidden_layers, config.hidden_size, config.max_position_embeddings)
    for layer, module in zip(shape.layers, place.layers(model.base), strict=True):
        pieces, heads = place.pieces(module), config.num_attention_heads
        assert (layer.heads, layer.heads * layer.d_head) == (heads, pieces.query.weight.shape[0])
        assert layer.kv_heads * layer.d_head == pieces.key.weight.shape[0]
        assert layer.d_ff == pieces.up.weight.shape[0]
        assert layer.pre_norm == place.pre_norm(config)
    assert shape.causal == place.causal(config)


def test_the_shape_is_the_configurations(named):
    name, model = named
    config, shape = model.config, model.shape
    assert (len(shape.layers), shape.width) == (config.num_hidden_layers, config.hidden_size)
    if name not in encoder_models.CASES:
        assert shape.positions == getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", None))
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    for layer in shape.layers:
        expected = HEADS.get(named[0], (config.num_attention_heads, shared, width)) if layer.heads else (0, 0, 0)
        assert (layer.heads, layer.kv_heads, layer.d_head) == expected
    assert shape.noted == ()
    assert shape_of_config(config) == shape


def test_heads_and_the_bias_add_up_to_the_attention(model, given):
    heads = model.shape.layers[1].heads
    attention, *each = [tp.block(model, "attn", layer=1, norm=False, **given)] + [
        tp.block(model, "head", layer=1, head=h, norm=False, **given) for h in range(heads)
    ]
    projection = attention.layers[0].projection
    bias = projection(attention.x.new_zeros(1, heads * model.shape.layers[1].d_head))
    y = attention(attention.x)
    assert (sum(head(attention.x) for head in each) + bias - y).abs().max() <= 1e-14 * y.abs().max()


def test_a_layer_is_its_branches(model, given):
    """x + attention, and then + MLP, or both at x, or each sum through a norm of its own."""
    for index in layers_with(model.shape, "attn"):
        parts = model.parts[index]
        whole, attention, mlp = (tp.block(model, kind, layer=index, **given) for kind in ("layer", "attn", "mlp"))
        x = whole.x
        if parts.parallel:
            x = x + attention(x) + mlp(x)
        else:
            for branch, after in ((attention, parts.after_attn), (mlp, parts.after_mlp)):
                total = x + branch(x)
                x = total if after is None else after(total)
        y = whole(whole.x)
        assert (x - y).abs().max() <= 1e-14 * y.abs().max()


def reached(block, structure: Structure, window: int) -> tuple[float, float]:
    """The largest entry of J by reverse mode outside of a structure; and, of the blocks inside and within the window, the
    smallest of their largest."""
    T = block.tokens
    J = torch.func.jacrev(block.function())(block.x).abs().amax((1, 3))
    inside = torch.zeros(T, T, dtype=torch.bool)
    for t in range(T):
        inside[t, list(structure.row(t, T))] = True
    outside = J[~inside]
    near = (torch.arange(T)[:, None] - torch.arange(T)).abs() < window
    return float(outside.max()) if len(outside) else 0.0, float(J[inside & near].min())


@pytest.mark.parametrize("kind", ["mlp", "attn", "head", "layer", "model"])
def test_structures_hold_and_are_no_wider_than_they_need_be(named, given, kind):
    name, model = named
    window = (3 if name == "modernbert" else ROWS[name].window(model.config, 1) if name in ROWS else None) or len(
        IDS
    ) + 1
    options = {"layer": None if kind == "model" else 1, "head": 1 if kind == "head" else None}
    block = tp.block(model, kind, **given, **options)
    outside, inside = reached(block, block.structure, window)
    assert outside == 0
    assert inside > 0


# ---- nobody else


def names_of_families() -> set[str]:
    """What configurations and modules of the families call things, less what all models have, plain words, and what the package
    calls a piece or a size itself."""
    configs = [AutoConfig.for_model(kind) for kind in FAMILIES]
    said = {name for config in configs for name in config.to_dict()} - set(PreTrainedConfig().to_dict()) - {"bias"}
    paths = {
        path
        for config in configs
        for family in [FAMILIES[config.model_type]]
        for _, path in family.sites(config).items()
    }
    sites = {name for path in paths for name in path.split(".")} | {family.head_size for family in FAMILIES.values()}
    more = {"model_type", "num_key_value_heads", "head_dim", "position_embeddings", "variance_epsilon"}
    own = {field.name for kind in (Sites, LayerShape) for field in fields(kind)}
    return (said | {name for name in sites if name.isidentifier() and not name.isalpha()} | more) - own


def read_in(source: str) -> set[str]:
    """Attributes that a program reads, and the names among its strings."""
    nodes = list(ast.walk(ast.parse(source)))
    return {n.attr for n in nodes if isinstance(n, ast.Attribute)} | {
        n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)
    }


def test_nobody_but_models_reads_what_families_call_things():
    names, package = names_of_families(), Path(tp.__file__).parent
    assert {"hidden_size", "num_attention_heads", "ffn_dim", "intermediate_size", "self_attn", "head_dim"} <= names
    found = {
        str(path.relative_to(package)): sorted(seen)
        for path in package.rglob("*.py")
        if path.relative_to(package).parts[0] != "models" and (seen := read_in(path.read_text("utf-8")) & names)
    }
    assert found == {}


def test_the_reader_sees_attributes_and_strings():
    source = 'a = model.config.hidden_size\nb = getattr(config, "ffn_dim")\nc = config["num_attention_heads"]'
    assert {"hidden_size", "ffn_dim", "num_attention_heads"} <= read_in(source)
