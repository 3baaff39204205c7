"""What is proved of the rows of more decoders: mistakes are found, and the whole is the model as it is loaded."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from oracles.decoder_models import DECODERS
from oracles.family_models import made
from transformers import AutoConfig, AutoModel

import tightpass as tp
from tightpass.evidence.bounds import structural_bounds
from tightpass.evidence.units import units
from tightpass.models.families.base import ABSENT, FAMILIES
from tightpass.models.options import layers_with

IDS = [5, 17, 2, 30, 11, 7]
NOT_THE_SUM = r"layer 1 of .* is not the sum of its branches"


def whole(model):
    block = tp.block(tp.load_model(model), "model", token_ids=IDS)
    return block(block.x)


def as_loaded(model):
    """By the model's own attention; experts one by one, since grouped products do not take float64."""
    model = copy.deepcopy(model)
    model.set_experts_implementation("eager")
    with torch.no_grad():
        return model(input_ids=torch.tensor([IDS]), use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("name", DECODERS)
def test_the_whole_model_is_the_one_that_was_loaded(name):
    y = as_loaded(made(name))
    assert float((whole(made(name)) - y).abs().max()) <= 1e-5 * float(y.abs().max())


def test_falcon_adds_its_bias_once():
    """As it is loaded by default; its eager attention adds it twice."""
    kind, settings = DECODERS["falcon-rw"]
    twice = AutoModel.from_config(
        AutoConfig.for_model(kind, **copy.deepcopy(settings)), dtype=torch.float64, attn_implementation="eager"
    ).eval()
    twice.load_state_dict(made("falcon-rw").state_dict())
    y = as_loaded(made("falcon-rw"))
    assert float((as_loaded(twice) - y).abs().max()) > 1e-2 * float(y.abs().max())
    assert float((whole(twice) - y).abs().max()) <= 1e-5 * float(y.abs().max())


MISTAKES = {
    "falcon-7b": {"parallel": lambda config: False},
    "olmo3": {"sites": FAMILIES["llama"].sites},
    "cohere2": {"parallel": lambda config: False},
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_row_that_forgets_something_is_refused(monkeypatch, name):
    kind = DECODERS[name][0]
    monkeypatch.setitem(FAMILIES, kind, replace(FAMILIES[kind], **MISTAKES[name]))
    with pytest.raises((tp.VerificationError, tp.InputError), match=f"{NOT_THE_SUM}|has no module"):
        tp.block(tp.load_model(made(name)), "layer", layer=1, token_ids=IDS)


def test_a_mixer_that_is_forgotten_is_found(monkeypatch):
    family = FAMILIES["lfm2"]

    def wrong(config, index):
        found = family.sites_at(config, index)
        return replace(found, mixer="feed_forward") if found.context is ABSENT else found

    monkeypatch.setitem(FAMILIES, "lfm2", replace(family, sites_of=wrong))
    with pytest.raises(tp.VerificationError, match=r"layer 0 of .* is not the sum"):
        tp.block(tp.load_model(made("lfm2")), "layer", layer=0, token_ids=IDS)


@pytest.mark.parametrize("name", ["deepseek", "gpt_oss", "qwen3_next", "falcon-7b", "mpt"])
def test_bounds_hold(name):
    """No singular value beyond a bound is more than rounding."""
    model = tp.load_model(made(name))
    for kind in ("mlp", "attn", "head", "layer"):
        for layer in layers_with(model.shape, kind):
            block = tp.block(model, kind, layer=layer, head=0 if kind == "head" else None, token_ids=IDS)
            values = torch.linalg.svdvals(tp.jacobian(block).dense())
            bound = structural_bounds(block, units(block))[0].rank
            assert bound == len(values) or float(values[bound]) <= 1e-14 * float(values[0])


@pytest.mark.parametrize("name", DECODERS)
def test_float32_is_near_float64(name):
    wide, narrow = (
        tp.jacobian(tp.block(tp.load_model(made(name), dtype=dtype), "layer", layer=0, token_ids=IDS)).dense()
        for dtype in ("float64", "float32")
    )
    assert float((wide - narrow).abs().max()) <= 1e-4 * float(torch.linalg.matrix_norm(wide, 2))
