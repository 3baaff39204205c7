"""Models that were handed in: adapters applied, wrappers taken off, and what is not what it says refused."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import tightpass as tp

IDS = [5, 17, 2, 88]
CONFIG = LlamaConfig(
    vocab_size=97,
    hidden_size=12,
    head_dim=4,
    intermediate_size=20,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_hidden_layers=2,
    max_position_embeddings=40,
)


def llama(kind=LlamaForCausalLM):
    torch.manual_seed(0)
    return kind(CONFIG).double().eval()


def with_lora(scale=16, **options):
    peft = pytest.importorskip("peft")
    given = llama()
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(
            r=2,
            lora_alpha=scale,
            target_modules=["q_proj", "o_proj", "down_proj"],
            init_lora_weights=False,
            **options,
        )
        return peft.get_peft_model(given, config).double().eval()


def merged(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return copy.deepcopy(model).merge_and_unload()


# ---- adapters


@pytest.mark.parametrize("kind", ["mlp", "attn", "head", "layer"])
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True, "lora_dropout": 0.5}], ids=str)
def test_adapters_of_peft_are_applied(kind, options):
    if options and kind not in ("mlp", "attn"):
        pytest.skip("once is enough")
    given = with_lora(**options)
    head = {"head": 1} if kind == "head" else {}
    J, exact, before = (
        tp.jacobian(tp.block(tp.load_model(model), kind, layer=1, token_ids=IDS, **head))
        for model in (given, merged(given), llama())
    )
    size = float(exact.dense().abs().max())
    assert float((J.dense() - exact.dense()).abs().max()) <= 1e-14 * size
    assert float((J.dense() - before.dense()).abs().max()) > 1e-2 * size
    assert J.route == "automatic differentiation"
    assert exact.route.startswith("closed form")


def test_adapters_are_named_and_part_of_the_question(tmp_path):
    question = {"layers": "1", "token_ids": IDS, "out": str(tmp_path / "run")}
    run = tp.run(with_lora(), **question)
    assert run.provenance["weights"] == "given, adapted by default (LORA)"
    assert "adapted by default (LORA)" in run.title
    tp.run(with_lora(), **question)
    with pytest.raises(tp.InputError, match="choose another --out"):
        tp.run(with_lora(scale=8), **question)  # the same weights, of another scale
    disabled = with_lora()
    disabled.base_model.disable_adapter_layers()
    assert tp.load_model(disabled).weights == "given, its adapters disabled"
    assert tp.load_model(disabled).weights_hash() != tp.load_model(with_lora()).weights_hash()
    J, without = (
        tp.jacobian(tp.block(tp.load_model(model), "attn", layer=1, token_ids=IDS)) for model in (disabled, llama())
    )
    assert torch.allclose(J.dense(), without.dense(), rtol=0, atol=1e-15)


def test_an_adapter_that_is_no_part_of_a_block_is_refused():
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(tp.InputError, match=r"PROMPT_TUNING puts what it has learnt in front of the tokens"):
        tp.load_model(peft.get_peft_model(llama(), config).eval())


# ---- wrapped


class Bridge(nn.Module):
    """As a TransformerBridge: an attribute has the model, and all else is passed on."""

    def __init__(self, model):
        super().__init__()
        self.original_model, self.compatibility_mode = model, False

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("original_model"), name)


class Envoy:
    """As nnsight's wrappers: no module, with one inside."""

    def __init__(self, model):
        self._model = model


class HookedTransformer(nn.Module):
    """By name, and by what it has."""

    def __init__(self):
        super().__init__()
        self.cfg, self.blocks = object(), nn.ModuleList([nn.Linear(2, 2)])


@pytest.mark.parametrize("wrap", [Bridge, Envoy, lambda model: Envoy(Bridge(model))])
def test_wrappers_are_taken_off(wrap, tmp_path):
    given = llama()
    wrapped, plain = (tp.load_model(model) for model in (wrap(given), given))
    assert wrapped.weights_hash() == plain.weights_hash()
    run = tp.run(wrap(given), layers="0", token_ids=IDS, out=str(tmp_path / "run"))
    expected = tp.spectrum(tp.jacobian(tp.block(plain, "mlp", layer=0, token_ids=IDS))).values
    assert np.array_equal(run["L00.mlp"].values, expected)


class Between(nn.Module):
    """As a TransformerBridge puts around every module of the model."""

    def __init__(self, inner):
        super().__init__()
        self._original_component = inner

    def forward(self, *args, **kwargs):
        return self._original_component(*args, **kwargs)


def between(model):
    for layer in model.model.layers:
        layer.self_attn.o_proj = Between(layer.self_attn.o_proj)
        layer.self_attn = Between(layer.self_attn)
    return model.eval()


def called(model):
    """As nnsight: calls of its own, which do not see what is put in a module's place."""
    for module in model.modules():
        vars(module)["forward"], vars(module)["__nnsight__"] = module.forward, object()
    return model


@pytest.mark.parametrize("altered", [between, called])
def test_what_libraries_put_into_a_model_is_taken_out(altered):
    plain, given = tp.load_model(llama()), tp.load_model(altered(llama()))
    assert given.weights_hash() == plain.weights_hash()
    values = [tp.spectrum(tp.jacobian(tp.block(m, "attn", layer=1, token_ids=IDS))).values for m in (plain, given)]
    assert np.array_equal(*values)


def test_a_part_in_train_mode_is_seen_behind_them():
    model = called(llama())
    model.model.layers[1].self_attn.train()
    with pytest.raises(tp.InputError, match=r"in train mode in its .*layers.1.self_attn"):
        tp.load_model(model)


def test_a_model_that_was_taken_apart_is_refused():
    model = between(llama())
    model.model.layers[0].mlp.up_proj = Between(nn.Identity()).eval()
    with pytest.raises(tp.InputError, match=r"was taken apart: it has no model.layers.0.mlp.up_proj.weight"):
        tp.load_model(model)


@pytest.mark.parametrize("library", ["nnsight", "transformer_lens"])
def test_the_libraries_themselves(library):
    """Those that are installed here."""
    wrapping, model = pytest.importorskip(library), llama()
    plain = tp.load_model(model)
    if library == "nnsight":
        wrapped = wrapping.NNsight(model)
    else:
        bridge = pytest.importorskip("transformer_lens.model_bridge").TransformerBridge
        wrapped = bridge.boot_transformers("demo", hf_model=model, tokenizer=tp.load_model("demo").tokenizer)
    assert tp.load_model(wrapped).weights_hash() == plain.weights_hash()


@pytest.mark.parametrize("said", ["compatibility_mode", "_weights_processed"])
def test_folded_and_centred_weights_are_refused(said):
    bridge = Bridge(llama())
    setattr(bridge, said, True)
    for model, what in ((bridge, "Bridge in compatibility mode"), (HookedTransformer().eval(), "HookedTransformer")):
        with pytest.raises(tp.InputError, match=f"a {what} has other weights .*\nGive the Hugging Face model") as error:
            tp.load_model(model)
        assert str(error.value).count("\n") == 1


# ---- refused


def quantised(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model.float(), {nn.Linear}, dtype=torch.qint8)


def with_weight(make):
    def change(model):
        model.model.layers[0].mlp.up_proj.weight = nn.Parameter(make(model), requires_grad=False)
        return model

    return change


class Coded(nn.Parameter):
    """As those of libraries that quantise: a parameter of a class of its own."""


def coded(model):
    linear = model.model.layers[0].mlp.up_proj
    linear.weight = Coded(linear.weight.data)
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.train(), "the model is in train mode, where dropout makes it random; call model.eval"),
        (lambda model: model.model.layers[1].mlp.train() and model, r"train mode in its model.layers.1.mlp, where"),
        (quantised, r"quantised weights \(Linear\)"),
        (with_weight(lambda model: torch.zeros(20, 12, dtype=torch.int8)), r"up_proj.weight has integers, torch.int8"),
        (with_weight(lambda model: torch.zeros(20, 12).to(torch.float8_e4m3fn)), r"is torch.float8_e4m3fn"),
        (coded, r"up_proj.weight is a Coded"),
        (lambda model: model.to("meta"), "on the meta device"),
    ],
)
def test_what_is_not_as_it_should_be_is_refused(change, message):
    model = change(llama())
    for take in (tp.load_model, lambda model: tp.block(model, module="model.layers.0.mlp", token_ids=IDS)):
        with pytest.raises(tp.InputError, match=message):
            take(model)
