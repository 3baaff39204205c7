"""Names, families, precision, and what is refused at the door."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from oracles.places import place_of
from oracles.small_models import bert, opt
from transformers import OPTConfig, OPTForCausalLM

import tightpass as tp
from tightpass.models import attention, loading, shape, sizes
from tightpass.models.capture import capture
from tightpass.models.families.base import FAMILIES, family_of
from tightpass.models.tokens import bundled_text, tokenize

IDS = [5, 17, 2, 88, 41, 7, 60]


def test_float64_is_genuine_through_attention(small_opt):
    """The eager attention of OPT is not: the test can tell the difference."""
    model = tp.load_model(small_opt)
    ours = tp.block(model, "attn", layer=1, token_ids=IDS)
    base = copy.deepcopy(small_opt)
    outputs = {}
    for name in ("sdpa", "eager"):
        base.set_attn_implementation(name)
        with torch.no_grad():
            outputs[name] = base(input_ids=torch.tensor([IDS])).last_hidden_state
    base.set_attn_implementation(attention.NAME)
    with torch.no_grad():
        mine = base(input_ids=torch.tensor([IDS])).last_hidden_state
    assert (mine - outputs["sdpa"]).abs().max() <= 1e-13
    assert (outputs["eager"] - outputs["sdpa"]).abs().max() > 1e-10
    assert ours.x.dtype == torch.float64


def test_a_block_that_is_float32_inside_is_refused(small_opt, monkeypatch):
    def single(module, query, key, value, mask, scaling=None, **_):
        scores = query @ key.transpose(-1, -2) * scaling + (0 if mask is None else mask)
        weights = scores.type("torch.FloatTensor").softmax(-1)  # a cast that is not lifted
        return (weights.to(query.dtype) @ value).transpose(1, 2).contiguous(), weights

    monkeypatch.setattr(attention, "softmax_attention", single)
    model = tp.load_model(small_opt)
    with pytest.raises(tp.VerificationError, match="not computed in float64 throughout"):
        tp.block(model, "attn", layer=1, token_ids=IDS)
    monkeypatch.undo()
    attention.register()


def misplace(monkeypatch, **paths):
    """Gives the row of OPT other paths."""
    right = FAMILIES["opt"]
    wrong = dataclasses.replace(right, sites=lambda config: dataclasses.replace(right.sites(config), **paths))
    monkeypatch.setitem(FAMILIES, "opt", wrong)


def test_a_wrong_row_in_the_table_is_found_at_load(small_opt, monkeypatch):
    misplace(monkeypatch, mlp_norm="self_attn_layer_norm")
    with pytest.raises(tp.VerificationError, match="does not reproduce the model's own output"):
        tp.block(tp.load_model(small_opt), "mlp", layer=0, token_ids=IDS)


def test_a_wrong_row_is_found_even_where_outputs_are_tiny(small_opt, monkeypatch):
    hf = copy.deepcopy(small_opt)
    with torch.no_grad():
        hf.decoder.layers[0].self_attn.out_proj.weight *= 1e-5
        hf.decoder.layers[0].self_attn.out_proj.bias *= 1e-5
    misplace(monkeypatch, attn_norm="final_layer_norm")
    with pytest.raises(tp.VerificationError, match="does not reproduce"):
        tp.block(tp.load_model(hf, dtype="float32"), "attn", layer=0, token_ids=IDS)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["mlp", "attn", "layer", "model"])
@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_one_massive_activation_is_no_reason_to_refuse(small_opt, kind, dtype, scale):
    """Trained models have tokens a thousand times larger than others."""
    hf = copy.deepcopy(small_opt)
    with torch.no_grad():
        hf.decoder.embed_tokens.weight[IDS[0]] *= scale
    tp.block(tp.load_model(hf, dtype=dtype), kind, layer=None if kind == "model" else 0, token_ids=IDS)


def test_the_hash_of_a_model_covers_its_architecture(small_opt):
    hashes = {tp.load_model(small_opt).weights_hash()}
    for change in ({"activation_function": "gelu"}, {"num_attention_heads": 7}, {"do_layer_norm_before": False}):
        hf = copy.deepcopy(small_opt)
        hf.config.update(change)
        hashes.add(tp.load_model(hf).weights_hash())
    assert len(hashes) == 4
    named = copy.deepcopy(small_opt)
    named.config._name_or_path = "elsewhere"
    assert tp.load_model(named).weights_hash() in hashes


def test_a_missing_module_says_what_there_is(small_opt, monkeypatch):
    misplace(monkeypatch, up="linear1")
    with pytest.raises(tp.InputError, match=r"no module 'linear1' \(it has: self_attn"):
        tp.block(tp.load_model(small_opt), "mlp", layer=0, token_ids=IDS)


def test_a_given_model_is_copied_and_left_as_it_was(small_opt):
    hf = copy.deepcopy(small_opt).float()
    before = {name: p.clone() for name, p in hf.named_parameters()}
    implementation = hf.config._attn_implementation
    model = tp.load_model(hf, dtype="float64")
    tp.jacobian(tp.block(model, "layer", layer=0, token_ids=IDS)).dense()
    assert model.dtype == torch.float64
    assert hf.config._attn_implementation == implementation
    for name, p in hf.named_parameters():
        assert p.dtype == torch.float32
        assert torch.equal(p, before[name])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.base.modules())


def test_a_causal_lm_and_its_base_give_the_same_block():
    config = OPTConfig(
        vocab_size=97,
        hidden_size=8,
        word_embed_proj_dim=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=9,
        max_position_embeddings=12,
    )
    lm = OPTForCausalLM._from_config(config, dtype=torch.float64).eval()
    blocks = [tp.block(tp.load_model(m), "mlp", layer=0, token_ids=IDS) for m in (lm, lm.model)]
    assert torch.equal(tp.jacobian(blocks[0]).dense(), tp.jacobian(blocks[1]).dense())


def test_names_structures_and_counts(hf_model):
    model = tp.load_model(hf_model)
    causal = place_of(model.config).causal(model.config)
    expected = tp.BlockLowerTriangular() if causal else tp.Dense()
    for kind, name in (("mlp", "L00.mlp"), ("attn", "L00.attn"), ("layer", "L00.layer")):
        block = tp.block(model, kind, layer=0, token_ids=IDS)
        assert block.name == name
        assert block.structure == (tp.BlockDiagonal() if kind == "mlp" else expected)
    assert tp.block(model, "head", layer=0, head=2, token_ids=IDS).name == "L00.H02"
    assert tp.block(model, "model", token_ids=IDS).name == "model"
    assert (
        tp.block(model, "mlp", layer=0, token_ids=IDS)(
            torch.zeros(3, model.config.hidden_size, dtype=torch.float64)
        ).shape[0]
        == 3
    )


def test_one_token(hf_model):
    model = tp.load_model(hf_model)
    for kind in ("mlp", "attn", "layer"):
        S = tp.spectrum(tp.jacobian(tp.block(model, kind, layer=0, token_ids=[4])))
        assert len(S.values) == model.config.hidden_size


@pytest.mark.parametrize("name", sizes.ALIASES)
def test_every_alias_is_packaged_with_the_right_shape(name):
    config = loading.read_config(loading.locate(name))
    assert family_of(config)
    published = {
        "opt-125m": 125e6,
        "opt-350m": 331e6,
        "opt-1.3b": 1.32e9,
        "opt-2.7b": 2.65e9,
        "opt-6.7b": 6.66e9,
        "opt-13b": 12.85e9,
        "opt-30b": 29.97e9,
        "opt-66b": 65.7e9,
        "bert-base-uncased": 109.5e6,
        "bert-large-uncased": 335e6,
    }
    assert shape.shape_of_config(config).parameters == pytest.approx(published[name], rel=0.01)


def test_random_weights_are_seeded_and_say_so():
    first, second, other = (tp.load_model("demo", weights="random", seed=s) for s in (0, 0, 1))
    assert first.weights_hash() == second.weights_hash() != other.weights_hash()
    assert first.weights == "random (seed 0)"
    assert first.revision is None


def test_special_tokens_count(minilm):
    model = tp.load_model(minilm)
    with_special, without = (tokenize(model, 6, special=s).ids.tolist() for s in (True, False))
    assert with_special[0] == 101
    assert with_special[-1] == 102
    assert with_special[1:-1] == without[:4]
    demo = tp.load_model("demo")
    ids = [tokenize(demo, 6, special=s).ids.tolist() for s in (True, False)]
    assert ids[0][0] == 2
    assert ids[0][1:] == ids[1][:5]
    assert demo.tokenizer.decode(ids[1]) == bundled_text()[: len(demo.tokenizer.decode(ids[1]))]


def test_the_bundled_text_is_long_enough_for_768_tokens(minilm):
    assert len(tokenize(tp.load_model(minilm), 512).ids) == 512
    assert len(bundled_text().split()) > 800


def test_a_text_without_tokenizer_is_refused_and_seeded_ids_say_so(small_opt):
    model = tp.load_model(small_opt)
    with pytest.raises(tp.InputError, match="no tokenizer"):
        tp.block(model, "mlp", layer=0, text="a few words", tokens=3)
    assert tokenize(model, 3).origin.startswith("random token ids")


def test_hooks_are_removed_even_if_the_forward_pass_fails(small_opt):
    model = tp.load_model(small_opt)
    with pytest.raises(tp.InputError, match="forward pass"):
        capture(model, torch.tensor([10**6]))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.base.modules())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tp.load_model(opt().train()), "train mode"),
        (lambda: tp.load_model(torch.nn.Linear(2, 2)), "expected a Hugging Face model"),
        (lambda: tp.load_model("opt-124m"), r"unknown model 'opt-124m'; nearest known names: opt-125m"),
        (lambda: tp.load_model("no/such/place"), "unknown model"),
        (lambda: tp.load_model("facebook/opt-125m"), "--weights random"),
        (lambda: tp.load_model("demo", dtype="float16"), "must be float64 or float32, got 'float16'"),
        (lambda: tp.load_model("demo", dtype="bfloat16"), "too coarse"),
        (lambda: tp.load_model("demo", device="tpu"), "device must be"),
        (lambda: tp.load_model("demo", device="cuda:99"), "torch sees"),
        (lambda: tp.load_model("demo", weights="trained"), "weights must be"),
        (lambda: tp.block(tp.load_model(bert()), "mlp", layer=2, token_ids=IDS), r"layers 0..1, got 2"),
        (
            lambda: tp.block(tp.load_model(bert()), "mlp", layer=-3, token_ids=IDS),
            r"layers 0..1, or -2..-1 from the end, got -3",
        ),
        (lambda: tp.block(tp.load_model(bert()), "mpl", layer=0, token_ids=IDS), "unknown block 'mpl'"),
        (
            lambda: tp.block(tp.load_model(bert()), "head", layer=0, head=5, token_ids=IDS),
            r"layer 0 of .* has heads 0..4, got 5",
        ),
        (lambda: tp.block(tp.load_model(bert()), "head", layer=0, token_ids=IDS), "needs one head"),
        (lambda: tp.block(tp.load_model(bert()), "mlp", token_ids=IDS), "a layer is needed"),
        (
            lambda: tp.block(tp.load_model(bert()), "model", layer=0, token_ids=IDS),
            "a layer is needed for every block but",
        ),
        (
            lambda: tp.block(tp.load_model(bert()), "layer", layer=0, token_ids=IDS, norm=False),
            "always contains its norms",
        ),
        (
            lambda: tp.block(tp.load_model(opt()), "mlp", layer=0, token_ids=IDS, norm=False, residual=True),
            "needs the norm",
        ),
        (lambda: tp.block(tp.load_model(bert()), "mlp", layer=0, token_ids=[500]), r"must lie in 0..96"),
        (lambda: tp.block(tp.load_model(bert()), "mlp", layer=0, token_ids=[]), "at least 1, got 0"),
        (lambda: tp.block(tp.load_model(bert()), "mlp", layer=0, token_ids=[1.5]), "list of integers"),
        (lambda: tp.block(tp.load_model(bert()), "mlp", layer=0, token_ids=[1] * 20), "has 19 positions, 20 tokens"),
        (lambda: tp.block(tp.load_model("demo"), "mlp", layer=0, text=" \n"), "the text is empty"),
        (lambda: tp.block("demo", "mlp", layer=0), "result of tightpass.load_model, got str"),
        (lambda: tp.block(tp.load_model(bert()), "mlp", layer="1", token_ids=IDS), "layer must be an integer"),
        (
            lambda: tp.block(tp.load_model(bert()), "model", token_ids=IDS, residual=True),
            "always contains its residuals",
        ),
        (lambda: tp.load_model(None), "got NoneType"),
        (lambda: tp.run(tp.load_model("demo")), "run loads the model itself"),
        (
            lambda: tp.block(tp.load_model("demo"), "mlp", layer=0, text="one two", tokens=64),
            "tokens, 64 were asked for",
        ),
    ],
)
def test_bad_requests_are_named(make, message):
    with pytest.raises(tp.InputError, match=message):
        make()


def test_quantised_weights_are_refused(tmp_path, small_opt):
    small_opt.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    with pytest.raises(tp.InputError, match=r"quantised weights \(gptq\)"):
        tp.load_model(str(tmp_path))
    hf = copy.deepcopy(small_opt)
    hf.decoder.layers[0].fc1.weight = torch.nn.Parameter(torch.ones(50, 21, dtype=torch.int8), requires_grad=False)
    with pytest.raises(tp.InputError, match="integer"):
        tp.load_model(hf)


def test_a_local_directory_is_the_same_model(tmp_path, small_opt):
    small_opt.save_pretrained(tmp_path)
    assert tp.load_model(str(tmp_path)).weights_hash() == tp.load_model(small_opt).weights_hash()
    (tmp_path / "config.json").unlink()
    with pytest.raises(tp.InputError, match=r"without config.json"):
        tp.load_model(str(tmp_path))


def test_an_unsupported_family_names_those_near_it(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_neox_japanese"}))
    with pytest.raises(
        tp.InputError, match=r"'gpt_neox_japanese' is not among the \d+ of `tightpass models`; near it are gpt_neox"
    ):
        tp.load_model(str(tmp_path))


def test_weights_that_exceed_the_memory_are_refused_before_loading():
    with pytest.raises(tp.DoesNotFitError, match="smallest that fits"):
        tp.load_model("opt-66b", weights="random", memory=2**30)


def test_models_and_blocks_are_one_line():
    model = tp.load_model("demo", dtype="float32")
    assert repr(model) == "Model(demo, pretrained: 6 layers of width 128, float32, cpu)"
    assert repr(tp.block(model, "mlp", layer=0, tokens=3)) == "Block(L00.mlp of demo, x (3, 128), BlockDiagonal)"
