"""What is proved of a family's row whenever a block is made: each mistake is found, and said."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from oracles.family_models import CASES, made
from transformers import AutoConfig, AutoModel

import tightpass as tp
from tightpass.evidence.bounds import structural_bounds
from tightpass.evidence.units import units
from tightpass.models import attention
from tightpass.models.families.base import FAMILIES
from tightpass.models.genuine import Genuine

IDS = [5, 17, 2, 30, 11, 7]


def without_posts(family):
    return replace(family, sites=lambda config: replace(family.sites(config), attn_post=None, mlp_post=None))


MISTAKES = {
    "gemma2": without_posts,
    "olmo2": without_posts,
    "granite": lambda family: replace(family, scale=lambda config: 1.0),
    "gpt_neox": lambda family: replace(family, parallel=lambda config: False),
    "phi": lambda family: replace(family, parallel=lambda config: False),
}


@pytest.mark.parametrize("kind", ["mlp", "attn", "layer"])
@pytest.mark.parametrize("name", MISTAKES)
def test_a_row_that_forgets_something_is_refused(monkeypatch, name, kind):
    monkeypatch.setitem(FAMILIES, name, MISTAKES[name](FAMILIES[name]))
    with pytest.raises(tp.VerificationError, match=r"layer 1 of .* is not the sum of its branches"):
        tp.block(tp.load_model(made(name)), kind, layer=1, token_ids=IDS)


@pytest.mark.parametrize("name", ["gemma2", "llama", "gpt2"])
def test_our_attention_is_the_familys_at_the_whole_model(name):
    ids, given = torch.tensor([IDS]), made(name)
    with torch.no_grad():
        as_loaded = given(input_ids=ids, use_cache=False).last_hidden_state[0]
    block = tp.block(tp.load_model(given), "model", token_ids=IDS)
    assert float((block(block.x) - as_loaded).abs().max()) <= 1e-5 * float(as_loaded.abs().max())


def test_an_attention_that_drops_the_cap_is_refused(monkeypatch):
    right = attention.softmax_attention

    def dropping(module, *given, softcap=None, **others):
        return right(module, *given, **others)

    monkeypatch.setattr(attention, "softmax_attention", dropping)
    call = [torch.randn(1, 2, 3, 4, dtype=torch.float64) for _ in range(3)]
    module = made("gemma2").layers[0].self_attn
    with pytest.raises(tp.VerificationError, match=r"attention differs from that of Gemma2Attention by"):
        attention._prove(module, (call[0], call[1][:, :1], call[2][:, :1]), None, {"softcap": 1.5, "scaling": 0.5})


def test_keywords_that_are_not_known_are_refused():
    q = torch.randn(1, 2, 3, 4)
    attention.softmax_attention(torch.nn.Identity(), q, q, q, None, sliding_window=2, alibi=None)
    with pytest.raises(tp.VerificationError, match="hands its attention alibi, which"):
        attention.softmax_attention(torch.nn.Identity(), q, q, q, None, alibi=q)


def test_sinks_take_part_in_the_softmax_and_carry_nothing():
    q = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    sinks = torch.tensor([0.3, -0.5], dtype=torch.float64)
    y, weights = attention.softmax_attention(torch.nn.Identity(), q, q, q, None, s_aux=sinks)
    scores = (q @ q.mT / 2).exp()
    expected = scores / (scores.sum(-1, keepdim=True) + sinks.exp()[None, :, None, None])
    assert torch.allclose(weights, expected, rtol=1e-14, atol=0)
    assert torch.allclose(y, (expected @ q).transpose(1, 2), rtol=1e-13, atol=1e-15)


def test_float64_stays_and_all_else_is_cast():
    wide, narrow, whole = torch.ones(2, dtype=torch.float64), torch.ones(2), torch.ones(2, dtype=torch.long)
    with Genuine():
        assert wide.float().dtype == wide.to(torch.float32).dtype == wide.to("cpu", torch.float32).dtype == wide.dtype
        assert wide.to(narrow).dtype == wide.to(dtype=torch.float32).dtype == wide.dtype
        assert torch.nn.functional.softmax(wide, -1, dtype=torch.float32).dtype == wide.dtype
        assert wide.softmax(-1, dtype=torch.float32).dtype == wide.dtype
        assert wide.to(torch.long).dtype == wide.to(whole).dtype == torch.long
        assert narrow.to(torch.float64).dtype == torch.float64
        assert (whole.float().dtype, narrow.half().dtype) == (torch.float32, torch.float16)


def test_a_gated_relu_is_refused():
    kind, settings = CASES["llama"]
    model = AutoModel.from_config(AutoConfig.for_model(kind, **settings | {"hidden_act": "relu"})).eval()
    loaded = tp.load_model(model)
    tp.block(loaded, "attn", layer=0, token_ids=IDS)
    for block in ("mlp", "layer"):
        with pytest.raises(tp.InputError, match="gated MLP with a ReLU"):
            tp.block(loaded, block, layer=0, token_ids=IDS)


@pytest.mark.parametrize("kind", ["mlp", "attn", "head", "layer"])
@pytest.mark.parametrize("name", ["qwen2", "gemma2", "cohere", "gpt_neox", "nemotron", "olmo2"])
def test_bounds_hold(name, kind):
    """No singular value beyond a bound is more than rounding."""
    block = tp.block(tp.load_model(made(name)), kind, layer=1, head=0 if kind == "head" else None, token_ids=IDS)
    values = torch.linalg.svdvals(tp.jacobian(block).dense())
    bounds = structural_bounds(block, units(block))
    assert bounds[0].rank == len(values) or float(values[bounds[0].rank]) <= 1e-14 * float(values[0])
    norm_removes = name == "gpt_neox" and kind != "layer"
    assert any("LayerNorm removes" in bound.reason for bound in bounds) == norm_removes


@pytest.mark.parametrize("name", CASES)
def test_a_saved_model_is_the_same_model(tmp_path, name):
    made(name).save_pretrained(tmp_path)
    saved, given = tp.load_model(tmp_path), tp.load_model(made(name))
    stored, own = saved.base.state_dict(), given.base.state_dict()
    assert all(torch.equal(stored[key], own[key]) for key in stored)
    blocks = [tp.block(model, "layer", layer=1, token_ids=IDS) for model in (saved, given)]
    y = blocks[1].x
    assert float((blocks[0].x - y).abs().max()) <= 1e-6 * float(y.abs().max())
