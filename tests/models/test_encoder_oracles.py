"""Every family of encoders, against layers written out from their formulas; and what is proved of their rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from oracles.encoder_blocks import block_of, loaded, oracle_of
from oracles.encoder_models import CASES, IDS, config_of, given_of, made, reads_text
from oracles.encoder_oracles import ROWS
from oracles.family_blocks import KINDS, difference, function_of
from transformers.models.t5 import modeling_t5

import tightpass as tp
from tightpass.models import attention
from tightpass.models.families.base import FAMILIES
from tightpass.models.options import KINDS as ALL_KINDS
from tightpass.models.signal import pixels
from tightpass.structure import BlockLowerTriangular, Dense


def largest_difference(name, kind, layer=1, norm=True):
    block = block_of(name, kind, layer, norm)
    return difference(block, function_of(oracle_of(name, block, layer), block))


def test_every_family_here_has_an_oracle():
    assert CASES.keys() == ROWS.keys()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_jacobians_are_those_of_the_formulas(name, kind):
    for layer in range(len(loaded(name).shape.layers)):
        assert largest_difference(name, kind, layer) <= 1e-12


@pytest.mark.parametrize("kind", ["mlp", "attn", "head"])
@pytest.mark.parametrize("name", ["dinov2", "modernbert", "t5", "albert", "clip-vision"])
def test_bare_modules_are_without_norms_and_layer_scale(name, kind):
    assert largest_difference(name, kind, norm=False) <= 1e-12


@pytest.mark.parametrize("name", CASES)
def test_the_whole_model_is_what_transformers_computes(name):
    """Of what it gives after its own last norm; in the softmax of a lower precision, where the family has one."""
    model, given = loaded(name), made(name)
    block = tp.block(model, "model", **given_of(name))
    run = getattr(given, model.family.tower, given)
    if reads_text(name):
        inputs = {"input_ids": torch.tensor([IDS])}
    else:
        signal = model.shape.reads
        drawn = torch.randn(signal.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        inputs = {signal.name: drawn[None]}
    with torch.no_grad():
        as_loaded = run(**inputs).last_hidden_state[0]
    assert float((block(block.x) - as_loaded).abs().max()) <= 1e-5 * float(as_loaded.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_the_route_is_the_one_that_the_table_says(name):
    family = loaded(name).family
    assert family.closed in ((), ALL_KINDS)
    inside = {"mlp", "layer"} if name == "dinov2-gated" else set()  # an MLP whose activation is no module
    for kind in KINDS:
        form = tp.jacobian(block_of(name, kind)).form
        assert form.closed == (kind in family.closed and kind not in inside), kind


@pytest.mark.parametrize("name", CASES)
def test_float32_is_float64_but_for_rounding(name):
    block = tp.block(tp.load_model(made(name), dtype="float32"), "layer", 1, **given_of(name))
    y = oracle_of(name, block_of(name, "layer")).whole(block.x.double())
    assert block.x.dtype == torch.float32
    assert float((block(block.x) - y).abs().max()) <= 1e-5 * float(y.abs().max())


# ---- shapes


@pytest.mark.parametrize("name", CASES)
def test_units_and_causality_are_the_models(name):
    shape = loaded(name).shape
    assert {layer.d_ff for layer in shape.layers} == {{"dinov2": 24, "dinov2-gated": 16}.get(name, 17)}
    assert shape.causal == (name == "clip-text")


POSITIONS = {"roberta": 14, "t5": 2**31 - 1, "t5-gated": 2**31 - 1, "vit": 7, "dinov2": 5, "dinov2-gated": 5}
POSITIONS |= {"clip-vision": 5, "siglip-vision": 4, "whisper": 6}


@pytest.mark.parametrize("name", CASES)
def test_positions_are_as_many_as_there_are(name):
    assert loaded(name).shape.positions == POSITIONS.get(name, 16)
    if not reads_text(name):
        assert block_of(name, "mlp").tokens == POSITIONS[name]


def test_the_last_position_of_roberta_can_be_used():
    block = tp.block(loaded("roberta"), "layer", 0, token_ids=[5] * 14)
    assert block.tokens == 14
    with pytest.raises(tp.InputError, match="has 14 positions, 15 tokens were asked for"):
        tp.block(loaded("roberta"), "layer", 0, token_ids=[5] * 15)


def test_structures_hold_and_are_no_wider_than_they_need_be():
    for name in ("clip-text", "clip-vision", "modernbert", "t5"):
        block = block_of(name, "attn")
        J, T = torch.func.jacrev(block.function())(block.x).abs().amax((1, 3)), block.tokens
        behind = torch.arange(T)[:, None] - torch.arange(T)
        assert type(block.structure) is (BlockLowerTriangular if name == "clip-text" else Dense)
        reached = {"clip-text": behind >= 0, "modernbert": behind.abs() <= 2}.get(
            name, torch.ones(T, T, dtype=torch.bool)
        )
        assert bool(((J > 0) == reached).all()), name


# ---- proofs


def without_sums(family):
    return replace(family, sites=lambda config: replace(family.sites(config), after_attn=None, after_mlp=None))


def without_scales(family):
    return replace(family, sites=lambda config: replace(family.sites(config), attn_post=None, mlp_post=None))


MISTAKES = {
    "distilbert": without_sums,
    "albert": without_sums,
    "deberta-v2": without_sums,
    "dinov2": without_scales,
    "t5": lambda family: replace(family, scale=lambda config: 0.5),
    "modernbert": lambda family: replace(family, parallel=lambda config: True),
}


@pytest.mark.parametrize("kind", ["mlp", "attn", "layer"])
@pytest.mark.parametrize("name", MISTAKES)
def test_a_row_that_forgets_something_is_refused(monkeypatch, name, kind):
    monkeypatch.setitem(FAMILIES, name, MISTAKES[name](FAMILIES[name]))
    with pytest.raises(tp.VerificationError, match=r"layer 1 of .* is not the sum of its branches|does not reproduce"):
        tp.block(tp.load_model(made(name)), kind, layer=1, **given_of(name))


def test_an_attention_that_drops_the_bias_is_refused(monkeypatch):
    right = attention.softmax_attention

    def dropping(module, *given, position_bias=None, **others):
        return right(module, *given, **others)

    monkeypatch.setattr(attention, "softmax_attention", dropping)
    module = made("t5").encoder.block[1].layer[0].SelfAttention
    call = tuple(torch.randn(1, 3, 4, 5, dtype=torch.float64) for _ in range(3))
    bias = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    with pytest.raises(tp.VerificationError, match=r"attention differs from that of T5Attention by"):
        attention._prove(module, call, None, {"position_bias": bias, "scaling": 1.0})


def test_the_proof_of_attention_is_handed_the_bias(monkeypatch):
    """So that a family that computes something else with it is seen."""
    right = modeling_t5.eager_attention_forward

    def other(module, *given, position_bias=None, **others):
        return right(module, *given, position_bias=2 * position_bias, **others)

    monkeypatch.setattr(modeling_t5, "eager_attention_forward", other)
    with pytest.raises(tp.VerificationError, match=r"attention differs from that of T5Attention by"):
        block_of("t5", "attn")


def test_a_row_that_counts_patches_wrongly_is_refused(monkeypatch):
    wrong = replace(FAMILIES["siglip_vision_model"], reads=lambda config: pixels(config, extra=1))
    monkeypatch.setitem(FAMILIES, "siglip_vision_model", wrong)
    with pytest.raises(
        tp.VerificationError, match=r"makes 4 tokens of pixel_values of shape .*, its family's row says 5"
    ):
        tp.block(tp.load_model(made("siglip-vision")), "mlp", 0)


# ---- what is given, what is saved


@pytest.mark.parametrize("name", CASES)
def test_a_saved_model_is_the_same_model(tmp_path, name):
    made(name).save_pretrained(tmp_path)
    saved, given = tp.load_model(tmp_path), loaded(name)
    stored, own = saved.base.state_dict(), given.base.state_dict()
    assert stored.keys() == own.keys()
    assert all(torch.equal(stored[key], own[key]) for key in stored)
    blocks = [tp.block(model, "layer", layer=1, **given_of(name)) for model in (saved, given)]
    y = blocks[1].x
    assert float((blocks[0].x - y).abs().max()) <= 1e-6 * float(y.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_a_configuration_alone_gives_random_weights(tmp_path, name):
    config_of(name).save_pretrained(tmp_path)
    model = tp.load_model(tmp_path, weights="random", seed=3)
    assert model.dtype == torch.float64
    assert all(parameter.dtype == torch.float64 for parameter in model.base.parameters())
    assert tp.block(model, "mlp", layer=1, **given_of(name)).tokens in (4, 5, 6, 7)


@pytest.mark.parametrize(
    ("name", "whole", "path"),
    [
        ("t5", "T5ForConditionalGeneration", ""),
        ("whisper", "WhisperForConditionalGeneration", "model"),
        ("roberta", "RobertaForMaskedLM", "roberta"),
        ("vit", "ViTForImageClassification", "vit"),
    ],
)
def test_models_with_heads_and_decoders_are_taken_by_their_encoders(tmp_path, name, whole, path):
    """Given, and from the files that hold their weights."""
    base = made(name)
    whole = getattr(transformers, whole)(config_of(name)).double().eval()
    inside = whole.get_submodule(path)
    inside.load_state_dict(base.state_dict(), strict=False)
    whole.save_pretrained(tmp_path)
    blocks = [tp.block(tp.load_model(model), "attn", layer=1, **given_of(name)) for model in (whole, tmp_path)]
    expected = block_of(name, "attn")
    for block in blocks:
        assert torch.equal(block.x, expected.x)
        assert torch.equal(block(block.x), expected(expected.x))


def test_files_of_the_encoder_of_t5_alone_are_enough(tmp_path):
    alone = transformers.T5EncoderModel(config_of("t5")).double().eval()
    alone.encoder.load_state_dict(made("t5").encoder.state_dict())
    alone.save_pretrained(tmp_path)
    assert torch.equal(tp.block(tp.load_model(tmp_path), "layer", 1, token_ids=IDS).x, block_of("t5", "layer").x)


def test_two_towers_are_refused_with_the_way_round(tmp_path):
    text, vision = config_of("clip-text").to_dict(), config_of("clip-vision").to_dict()
    both = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision)).eval()
    with pytest.raises(tp.InputError, match=r"type 'clip' is two models.* model\.vision_model"):
        tp.load_model(both)
    for tower in (both.vision_model, both.text_model):
        name = "clip-text" if tower is both.text_model else "clip-vision"
        assert tp.block(tp.load_model(tower), "head", 0, head=0, **given_of(name)).tokens in (5, 6)
    both.save_pretrained(tmp_path / "both")
    transformers.CLIPVisionModel.from_pretrained(tmp_path / "both").save_pretrained(tmp_path / "one")
    assert tp.block(tp.load_model(tmp_path / "one"), "mlp", 1).tokens == 5


def test_a_gated_relu_is_refused():
    kind, settings = CASES["t5"]
    config = transformers.AutoConfig.for_model(kind, **settings | {"feed_forward_proj": "gated-relu"})
    model = tp.load_model(transformers.T5EncoderModel(config).eval())
    tp.block(model, "attn", layer=0, token_ids=IDS)
    with pytest.raises(tp.InputError, match="gated MLP with a ReLU"):
        tp.block(model, "mlp", layer=0, token_ids=IDS)


def test_relu_units_of_t5_are_counted():
    spectrum = tp.spectrum(tp.jacobian(block_of("t5", "mlp")))
    assert any("active units" in bound.reason for bound in spectrum.evidence.bounds)
