"""What every family in the table promises: it joins these tests by registering, with small models in `small_models.HF_MODELS`
and its pieces, for the oracles, in `places.PLACES`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from oracles.places import PLACES, place_of
from oracles.small_models import HF_MODELS
from transformers import AutoConfig, PreTrainedConfig

import tightpass as tp
from tightpass.models.families.base import FAMILIES
from tightpass.models.loading import Model
from tightpass.models.shape import shape_of_config
from tightpass.structure import Structure

IDS = [5, 17, 2, 88, 41, 7]
NAMES = {kind: [name for name, hf in HF_MODELS.items() if hf.config.model_type == kind] for kind in FAMILIES}


@pytest.fixture(params=[(kind, name) for kind, names in NAMES.items() for name in names or [None]], ids=str)
def model(request) -> Model:
    kind, name = request.param
    assert name is not None, f"the family {kind} has no small model in small_models.HF_MODELS"
    assert kind in PLACES, f"the family {kind} has no entry in places.PLACES"
    return tp.load_model(HF_MODELS[name])


def test_sites_are_modules_of_their_layer_and_those_that_the_oracles_mean(model):
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


def test_the_shape_is_the_configurations(model):
    config, shape, place = model.config, model.shape, place_of(model.config)
    sizes = len(shape.layers), shape.width, shape.positions
    assert sizes == (config.num_hidden_layers, config.hidden_size, config.max_position_embeddings)
    for layer, module in zip(shape.layers, place.layers(model.base), strict=True):
        pieces, heads = place.pieces(module), config.num_attention_heads
        assert (layer.heads, layer.heads * layer.d_head) == (heads, pieces.query.weight.shape[0])
        assert layer.kv_heads * layer.d_head == pieces.key.weight.shape[0]
        assert layer.d_ff == pieces.up.weight.shape[0]
        assert layer.pre_norm == place.pre_norm(config)
    assert shape.noted == ()
    assert shape.causal == place.causal(config)
    assert shape_of_config(config) == shape


def test_a_layer_is_its_branches(model):
    """x + attention, and then + MLP, each read through its pre-norm, or each sum through its own."""
    for index, parts in enumerate(model.parts):
        whole, attention, mlp = (tp.block(model, kind, layer=index, token_ids=IDS) for kind in ("layer", "attn", "mlp"))
        x = whole.x
        for branch, after in ((attention, parts.after_attn), (mlp, parts.after_mlp)):
            total = x + branch(x)
            x = total if after is None else after(total)
        y = whole(whole.x)
        assert (x - y).abs().max() <= 1e-14 * y.abs().max()


def reached(block, structure: Structure) -> tuple[float, float]:
    """The largest entry of J by reverse mode outside of a structure; and, of the blocks inside, the smallest of their largest."""
    T = block.tokens
    J = torch.func.jacrev(block.function())(block.x).abs().amax((1, 3))
    inside = torch.zeros(T, T, dtype=torch.bool)
    for t in range(T):
        inside[t, list(structure.row(t, T))] = True
    outside = J[~inside]
    return float(outside.max()) if len(outside) else 0.0, float(J[inside].min())


@pytest.mark.parametrize("kind", ["mlp", "attn", "head", "layer", "model"])
def test_structures_hold_and_are_no_wider_than_they_need_be(model, kind):
    options = {"layer": None if kind == "model" else 1, "head": 1 if kind == "head" else None}
    block = tp.block(model, kind, token_ids=IDS, **options)
    outside, inside = reached(block, block.structure)
    assert outside == 0
    assert inside > 0


# ---- nobody else


def names_of_families() -> set[str]:
    """What configurations and modules of the families call things, less what all models have and plain words."""
    configs = [AutoConfig.for_model(kind) for kind in FAMILIES]
    said = {name for config in configs for name in config.to_dict()} - set(PreTrainedConfig().to_dict())
    paths = {
        path
        for config in configs
        for family in [FAMILIES[config.model_type]]
        for _, path in family.sites(config).items()
    }
    sites = {name for path in paths for name in path.split(".")} | {family.head_size for family in FAMILIES.values()}
    more = {"model_type", "num_key_value_heads", "head_dim", "position_embeddings", "variance_epsilon"}
    return said | {name for name in sites if not name.isalpha()} | more


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
