"""What a model's files can be, besides right: each fault is one error that says what to do."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles.small_models import bert, opt
from safetensors.torch import load_file, save_file
from transformers import OPTForCausalLM

import tightpass as tp
from tightpass.models.loading import plain
from tightpass.models.tokens import TOKENS

IDS = [5, 17, 2, 88]


def saved(path, make=opt):
    make().save_pretrained(path)
    return path


def rewrite(path, change):
    """The weights of a saved model, changed."""
    file = path / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def configure(path, **fields):
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    (path / "config.json").write_text(json.dumps(config | fields), encoding="utf-8")


# ---- weights that were not there


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_orig_mod.model."])
@pytest.mark.parametrize("make", [opt, bert])
def test_a_prefix_is_named(tmp_path, prefix, make):
    rewrite(saved(tmp_path, make), lambda t: {prefix + key: value for key, value in t.items()})
    with pytest.raises(tp.InputError, match=rf"prefix that the model does not have: '{prefix}'.*\nStrip it"):
        tp.load_model(str(tmp_path))


def without(part):
    return lambda path: rewrite(path, lambda t: {k: v for k, v in t.items() if part not in k})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("layers.1."), r"16 weights of .* are not in its files: decoder.layers.1.fc1.bias"),
        (without("decoder.final_layer_norm.bias"), r"1 weights of .* decoder.final_layer_norm.bias"),
        (without("embed_positions"), "embed_positions"),
        (lambda path: configure(path, num_hidden_layers=4), r"16 weights .* decoder.layers.3.fc1.bias"),
        (lambda path: configure(path, num_hidden_layers=2), r"hold 16 weights that config.json has no place for"),
        (lambda path: configure(path, ffn_dim=49), r"decoder.layers.0.fc1.bias is \(50,\), expected \(49,\)"),
        (
            lambda path: rewrite(path, lambda t: t | {"decoder.layers.0.fc1.lora_A.weight": torch.ones(2, 21)}),
            "has no place for: decoder.layers.0.fc1.lora_A.weight",
        ),
    ],
)
def test_weights_that_are_not_in_the_files_are_named(tmp_path, damage, message):
    damage(saved(tmp_path))
    with pytest.raises(tp.InputError, match=message):
        tp.load_model(str(tmp_path))


def test_a_missing_pooler_is_not_missed_and_does_not_move_the_hash(tmp_path):
    full = tp.load_model(str(saved(tmp_path, bert))).weights_hash()
    without("pooler")(tmp_path)
    hashes = {tp.load_model(str(tmp_path)).weights_hash() for _ in range(2)}
    assert hashes == {full}


def test_the_prefix_of_a_causal_lm_is_the_usual_one(tmp_path, small_opt):
    config = copy.deepcopy(small_opt.config)
    lm = OPTForCausalLM._from_config(config, dtype=torch.float64).eval()
    lm.model.load_state_dict(small_opt.state_dict())
    lm.save_pretrained(tmp_path)
    assert all(key.startswith("model.") for key in load_file(tmp_path / "model.safetensors"))
    assert tp.load_model(str(tmp_path)).weights_hash() == tp.load_model(small_opt).weights_hash()


def test_adapter_files_are_named(tmp_path):
    saved(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(tp.InputError, match=r"holds an adapter \(adapter_config.json\); .*\nMerge it"):
        tp.load_model(str(tmp_path))
    (tmp_path / "config.json").unlink()
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(tp.InputError, match=r"adapter_config.json, adapter_model.safetensors\), and no full model"):
        tp.load_model(str(tmp_path))


# ---- files that are something else

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", POINTER, r"model.safetensors is a Git LFS pointer"),
        ("model.safetensors", "", r"model.safetensors is empty"),
        ("model.safetensors", "<!DOCTYPE html><html>", r"model.safetensors is a web page"),
        ("config.json", POINTER, r"config.json is a Git LFS pointer"),
        ("config.json", "", r"config.json is empty"),
        ("config.json", "\ufeff{}", r"config.json starts with a byte order mark"),
        ("config.json", "{", r"config.json' is not a valid JSON"),
        ("config.json", "[1]", r"config.json holds something else than the named fields"),
        ("tokenizer.json", POINTER, r"tokenizer.json is a Git LFS pointer"),
        ("tokenizer.json", '{"hello": 1}', r"cannot read the tokenizer in .* \(tokenizer.json\)"),
        ("tokenizer_config.json", '{"hello', r"cannot read the tokenizer"),
    ],
)
def test_a_file_that_is_something_else_is_named(tmp_path, name, content, message):
    (saved(tmp_path) / name).write_text(content, encoding="utf-8")
    with pytest.raises(tp.InputError, match=message):
        tp.load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (["decoder.layers.0.fc1.weight"], r"in its weights decoder.layers.0.fc1.weight; repair"),
        (
            [f"decoder.layers.{i}.fc2.bias" for i in (0, 0, 1, 2)],
            r"layers.0.fc2.bias, .*layers.1.fc2.bias, .*layers.2.fc2.bias; r",
        ),
        (
            [f"decoder.layers.0.{n}.bias" for n in ("fc1", "fc2", "self_attn.k_proj", "self_attn.v_proj")],
            "and 1 more; r",
        ),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(broken, said, value):
    model = opt()
    for name in broken:
        with torch.no_grad():
            model.get_parameter(name)[3] = value
    with pytest.raises(tp.InputError, match="not finite there: NaN or infinity .*" + said):
        tp.block(tp.load_model(model), "mlp", layer=0, token_ids=IDS)


def test_weights_that_overflow_on_the_way_are_not_blamed_for_it():
    model = opt()
    with torch.no_grad():
        model.decoder.layers[0].fc2.weight.fill_(1e38)
    with pytest.raises(tp.InputError, match="though its weights are"):
        tp.block(tp.load_model(model, dtype="float32"), "mlp", layer=0, token_ids=IDS)


def test_a_tokenizer_that_knows_no_words(tmp_path):
    opt().save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(tp.InputError, match="finds no token in the bundled text: files of it are missing"):
        tp.block(tp.load_model(tmp_path), "mlp", layer=0)


def test_a_model_of_few_positions_has_as_many_tokens(tmp_path):
    model = opt()
    model.save_pretrained(tmp_path)
    positions = model.config.max_position_embeddings
    assert positions < TOKENS
    assert tp.plan(str(tmp_path)).shape[0] == positions * model.config.hidden_size
    with pytest.warns(UserWarning, match="random token ids"):
        assert tp.block(tp.load_model(tmp_path), "mlp", layer=0).x.shape[0] == positions


def test_truncated_and_integer_weights_are_refused(tmp_path):
    file = saved(tmp_path) / "model.safetensors"
    whole = file.read_bytes()
    for length in (3000, len(whole) - 8):
        file.write_bytes(whole[:length])
        with pytest.raises(tp.InputError, match=r"model.safetensors is truncated or damaged; fetch it again"):
            tp.load_model(str(tmp_path))
    file.write_bytes(whole)
    rewrite(tmp_path, lambda t: {k: v.to(torch.int8) for k, v in t.items()})
    with pytest.raises(tp.InputError, match=r"model.safetensors has quantised \(integer\) weights"):
        tp.load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": "three"}, "'num_attention_heads' expected int, got str"),
        ({"hidden_size": [21]}, "'hidden_size' expected int, got list"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads must be an integer of at least 1, got 0"),
        ({"num_attention_heads": 4}, "must be divisible"),
        ({"vocab_size": 0}, "vocab_size must be an integer of at least 1, got 0"),
        ({"activation_function": "nonsense"}, "'nonsense' is not known"),
        ({"dtype": "nonsense"}, "nonsense"),
    ],
)
def test_wrong_fields_of_a_config_are_one_error(tmp_path, fields, message):
    configure(saved(tmp_path), **fields)
    with pytest.raises(tp.InputError, match=message):
        tp.load_model(str(tmp_path))
    with pytest.raises(tp.InputError, match=message):
        tp.run(str(tmp_path), tokens=3, out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"return_dict": False},
        {"output_attentions": True},
        {"output_hidden_states": True},
        {"attn_implementation": "flash_attention_2"},
        {"_attn_implementation": "flash_attention_2"},
        {"chunk_size_feed_forward": 2},
    ],
)
@pytest.mark.parametrize("make", [opt, bert])
def test_fields_that_only_change_the_form_of_results_are_set_aside(tmp_path, fields, make):
    saved(tmp_path, make)
    before = tp.load_model(str(tmp_path))
    configure(tmp_path, **fields)
    after = tp.load_model(str(tmp_path))
    assert after.weights_hash() == before.weights_hash()
    for kind in ("mlp", "attn"):
        blocks = [tp.block(model, kind, layer=1, token_ids=IDS) for model in (before, after)]
        assert torch.equal(*(tp.jacobian(block).dense() for block in blocks))


# ---- models that the caller has loaded


def test_given_models_whose_configs_say_otherwise(small_opt):
    expected = tp.jacobian(tp.block(tp.load_model(small_opt), "attn", layer=1, token_ids=IDS)).dense()
    given = copy.deepcopy(small_opt)
    given.set_attn_implementation("eager")
    given.config.return_dict = False
    layers = given.decoder.layers
    for i, layer in enumerate(layers):
        layers[i] = copy.deepcopy(layer)  # and with it its config
    assert layers[1].self_attn.config is not given.config
    found = tp.jacobian(tp.block(tp.load_model(given), "attn", layer=1, token_ids=IDS)).dense()
    assert torch.equal(found, expected)
    assert layers[1].self_attn.config._attn_implementation == "eager"


def test_weights_without_numbers_are_refused(tmp_path):
    with torch.device("meta"):
        empty = OPTForCausalLM(plain(opt().config)).eval()
    with pytest.raises(tp.InputError, match="on the meta device"):
        tp.load_model(empty)
    with pytest.raises(tp.InputError, match="on the meta device"):
        tp.run(empty, tokens=3, out=str(tmp_path / "run"))
    with pytest.raises(tp.InputError, match="expected a Hugging Face model, got Linear"):
        tp.run(torch.nn.Linear(2, 2), tokens=3, out=str(tmp_path / "run"))


def test_a_directory_that_is_not_there_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("models/opt", "checkpoints/step-100"):
        with pytest.raises(tp.InputError, match=rf"no directory {tmp_path}/{name} either"):
            tp.load_model(name)
    for name in ("/nonexistent/dir", "./here", "~/nowhere/at/all", "no/such/place"):
        with pytest.raises(
            tp.InputError, match=rf"there is no directory {Path(name).expanduser().absolute()}"
        ) as error:
            tp.load_model(name)
        assert "nearest" not in str(error.value)
    (tmp_path / "a.bin").touch()
    with pytest.raises(tp.InputError, match="that is a file; give the directory"):
        tp.load_model(str(tmp_path / "a.bin"))
    with pytest.raises(tp.InputError) as known:
        tp.load_model("opt-125m")
    assert "no directory" not in str(known.value)


@pytest.mark.parametrize("memory", [None, "2MiB"])
def test_a_directory_without_weights_is_said(tmp_path, memory, small_opt):
    small_opt.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(
        tp.InputError, match=r"a configuration and no weights \(model.safetensors or .*--weights random"
    ):
        tp.load_model(tmp_path, memory=memory)
    assert tp.load_model(tmp_path, weights="random").weights == "random (seed 0)"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_do_not_stay_where_they_lay_in_a_file(tmp_path, dtype):
    """Products are rounded otherwise for arrays that begin in between, on some processors."""
    opt().to(getattr(torch, dtype)).save_pretrained(tmp_path)
    model = tp.load_model(tmp_path, dtype=dtype)
    assert {parameter.data_ptr() % 64 for parameter in model.base.parameters()} == {0}


@pytest.mark.parametrize("name", ["nope.gguf", "models/nope.gguf", "/no/such/nope.gguf"])
def test_a_gguf_file_that_is_not_there_is_said(name):
    with pytest.raises(tp.InputError, match=r"there is no file .*nope\.gguf"):
        tp.load_model(name)


def test_ids_and_another_number_of_tokens_contradict_each_other(small_opt):
    model = tp.load_model(small_opt)
    with pytest.raises(tp.InputError, match="token_ids has 3 ids, 2 tokens were asked for"):
        tp.block(model, "mlp", 0, token_ids=[1, 2, 3], tokens=2)
    assert tp.block(model, "mlp", 0, token_ids=[1, 2, 3], tokens=3).tokens == 3


def test_a_block_of_made_up_input_warns_where_it_is_asked_for(small_opt):
    model = tp.load_model(small_opt)
    with pytest.warns(UserWarning, match=r"random token ids \(seed 3\)") as warned:
        tp.block(model, "mlp", 0, tokens=4, seed=3)
    assert warned[0].filename == __file__


def test_token_ids_that_stand_for_no_text_are_said(tmp_path, capsys):
    options = {"tokens": 2, "layers": "0", "discard_jacobian": True}
    saved(tmp_path / "model")
    capsys.readouterr()
    tp.run(tmp_path / "model", out=tmp_path / "a", **options)
    assert capsys.readouterr().err == (
        f"{tmp_path}/model gets random token ids (seed 0): no tokenizer at hand; the numbers are those of no text\n"
    )
    tp.run("demo", out=tmp_path / "b", **options)
    assert capsys.readouterr().err == ""


def test_a_plan_alone_reads_a_model(tmp_path):
    """In a process of its own, where nothing has been loaded before."""
    program = "import sys; import tightpass as tp; "
    program += "print(tp.plan(sys.argv[1], tokens=3).jobs[-1])"
    done = subprocess.run([sys.executable, "-c", program, saved(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "L02.mlp", done.stderr


@pytest.mark.parametrize("text", [["hello there"], b"hello", 5])
def test_what_is_no_text_is_refused(text):
    with pytest.raises(tp.InputError, match="must be one string"):
        tp.block(tp.load_model("demo"), "mlp", layer=1, text=text, tokens=2)


@pytest.mark.parametrize("name", ["", "  "])
def test_a_model_without_a_name(name):
    with pytest.raises(tp.InputError, match="no name"):
        tp.load_model(name)


def test_paths_and_types_are_taken_for_what_they_name(tmp_path):
    opt().save_pretrained(tmp_path)
    model = tp.load_model(tmp_path, dtype=np.float32)
    assert model.dtype is torch.float32
    assert model.name == str(tmp_path)


@pytest.mark.parametrize("name", ["gpt2", "llama", "pythia-70m", "gpt-neo-125m", "qwen2", "mistral", "phi-2"])
def test_names_of_families_that_have_no_short_one(name):
    """Most families are served and none of their models is packaged: what works is said, not what is spelt a little alike."""
    with pytest.raises(tp.InputError, match=r"a Hub id such as openai-community/gpt2 \(from the network") as error:
        tp.load_model(name)
    assert "nearest" not in str(error.value)
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("opt125m", ["opt-125m"]),
        ("OPT-125M", ["opt-125m"]),
        ("opt-125", ["opt-125m"]),
        ("bert-base", ["bert-base-uncased"]),
        ("bert", ["bert-base-uncased", "bert-large-uncased"]),
        ("demo2", ["demo"]),
        ("opt", ["opt-125m", "opt-350m", "opt-1.3b"]),
    ],
)
def test_a_slip_of_the_pen_is_told_what_was_meant(name, near):
    with pytest.raises(tp.InputError, match=rf"unknown model '{name}'; nearest known names: {', '.join(near)}\n"):
        tp.load_model(name)
