"""Models whose layers stay in the files: the same numbers, to the bit, and never more than a layer in memory."""

from __future__ import annotations

import gguf_writing
import pytest
import torch
from commands import call
from models.test_gguf import wide_llama
from oracles import family_models
from oracles.small_models import HF_MODELS, opt

import tightpass as tp
from tightpass.models.capture import capture
from tightpass.models.loading import loaded, locate
from tightpass.models.skeleton import places

IDS = [5, 17, 2, 8, 31]
FAMILIES = ("llama", "qwen3", "gemma2", "phi3", "gpt2", "gpt_neox", "gptj", "stablelm", "cohere", "olmo2", "gpt_neo")


def in_turn(path, dtype=torch.float64):
    return loaded(locate(str(path)), dtype, torch.device("cpu"), "pretrained", 0, in_turn=True)


def equal(path, kinds=("mlp", "attn", "layer"), dtype=torch.float64):
    """Every block of every layer, and the hash."""
    whole, turns = tp.load_model(path, dtype=dtype), in_turn(path, dtype)
    assert turns.weights_hash() == whole.weights_hash()
    assert turns.shape == whole.shape
    for layer in range(len(whole.parts)):
        for kind in kinds:
            a, b = (tp.block(model, kind, layer=layer, token_ids=IDS) for model in (whole, turns))
            assert torch.equal(a.x, b.x)
            assert torch.equal(tp.jacobian(a).dense(), tp.jacobian(b).dense()), (kind, layer)
    return turns


@pytest.mark.parametrize("name", HF_MODELS)
@pytest.mark.parametrize("shards", ["1GB", "4KB"])
def test_blocks_are_equal_to_the_bit(tmp_path, name, shards):
    HF_MODELS[name].save_pretrained(tmp_path, max_shard_size=shards)
    equal(tmp_path)


@pytest.mark.parametrize("name", FAMILIES)
def test_those_of_other_families_too(tmp_path, name):
    family_models.made(name).to(torch.float32).save_pretrained(tmp_path)
    family_models.made.cache_clear()
    equal(tmp_path, kinds=("attn", "mlp"))


def test_those_of_gguf_files_too(tmp_path):
    equal(gguf_writing.written(tmp_path / "m.gguf", wide_llama(), "llama", gguf_writing.gguf.GGMLQuantizationType.Q8_0))


def test_in_float32_from_float16(tmp_path):
    opt().half().save_pretrained(tmp_path, max_shard_size="4KB")
    equal(tmp_path, dtype=torch.float32)


def numbers(module):
    return sum(t.numel() for t in places(module).values() if isinstance(t, torch.nn.Parameter) and not t.is_meta)


def test_no_more_than_a_layer_is_held(tmp_path):
    opt().save_pretrained(tmp_path)
    model = in_turn(tmp_path)
    base, shape = model.base, model.shape
    held = []
    handles = [
        m.register_forward_hook(lambda *_: held.append(numbers(base))) for m in base.modules() if not [*m.children()]
    ]
    capture(model, torch.tensor(IDS))
    for handle in handles:
        handle.remove()
    rows = len(set(IDS)) * shape.width  # of the embedding
    assert max(held) == shape.outside + rows + shape.largest_layer
    assert numbers(base) == shape.outside
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.modules())
    first, second = (tp.block(model, "mlp", layer=i, token_ids=IDS) for i in (0, 1))
    assert numbers(first.layers[0].layer) == numbers(second.layers[0].layer) == shape.largest_layer
    assert numbers(base) == shape.outside
    first(first.x)  # still whole after the other was made


def test_what_fails_on_the_way_leaves_nothing_behind(tmp_path):
    opt().save_pretrained(tmp_path)
    model = in_turn(tmp_path)
    with pytest.raises(tp.InputError, match="fails at these 1 tokens"):
        capture(model, torch.tensor([10**6]))
    assert numbers(model.base) == model.shape.outside
    tp.block(model, "attn", layer=2, token_ids=[1])  # the padding's id is beyond the rows that are read


def test_only_what_does_not_fit_is_read_in_turn(tmp_path):
    opt().save_pretrained(tmp_path)
    shape = tp.load_model(tmp_path).shape
    whole = shape.parameters * 8
    assert tp.load_model(tmp_path, memory=whole).streamed is None
    assert tp.load_model(tmp_path, memory=whole - 1).streamed is not None
    least = (shape.outside + shape.width + shape.largest_layer + shape.largest_weight) * 8
    assert tp.load_model(tmp_path, memory=least).streamed is not None
    with pytest.raises(tp.DoesNotFitError, match=r"take .* and .* a layer at a time, --memory allows"):
        tp.load_model(tmp_path, memory=least - 1)
    with pytest.raises(tp.DoesNotFitError, match="needs all layers"):
        tp.block(tp.load_model(tmp_path, memory=least), "model", token_ids=IDS)


def test_missing_weights_are_refused_before_the_first_layer(tmp_path):
    from safetensors.torch import load_file, save_file

    opt().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "layers.2.fc1" not in k}, file)
    with pytest.raises(tp.InputError, match=r"2 weights of .* are not in its files: decoder.layers.2.fc1.bias"):
        in_turn(tmp_path)


def test_a_run_that_does_not_fit_whole(tmp_path, capsys, monkeypatch):
    """Its vocabulary is most of it, and of that a few rows are read."""
    model = tmp_path / "model"
    opt(vocab_size=100_000, num_hidden_layers=2).to(torch.float16).save_pretrained(model, max_shard_size="4MB")
    question = {"block": "mlp", "tokens": 4, "layers": "1"}
    whole = tp.plan(model, **question, memory="8GiB")
    little = f"{whole.memory // 2**20 - 1}MiB"
    turns = tp.plan(model, **question, memory=little)
    assert (whole.in_turn, turns.in_turn) == (False, True)
    assert turns.loaded < whole.loaded - 100_000 * 20 * 8
    runs, said = [], []
    for memory in ("8GiB", little):
        options = ["--model", model, "--block", "mlp", "--tokens", 4, "--layers", 1, "--memory", memory]
        code, _, err = call(capsys, monkeypatch, "run", *options, "--out", tmp_path / memory, "--discard-jacobian")
        assert code == 0, err
        runs.append(tp.open(tmp_path / memory))
        said.append("its layers are read from the files one at a time" in err)
    assert said == [False, True]
    assert runs[0].records[0].identity == runs[1].records[0].identity
    assert runs[0]["L01.mlp"].values.tolist() == runs[1]["L01.mlp"].values.tolist()
    code, out, err = call(capsys, monkeypatch, "plan", *options)
    assert (code, err) == (0, "")
    assert "layers read from the files one at a time" in out


def test_experts_that_lie_apart_are_refused_in_words(tmp_path, monkeypatch):
    from transformers import MixtralConfig, MixtralModel

    from tightpass.models.families.base import FAMILIES

    sizes = {"vocab_size": 37, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1, "num_local_experts": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16}
    MixtralModel._from_config(MixtralConfig(**sizes, **heads)).save_pretrained(tmp_path)
    monkeypatch.setitem(FAMILIES, "mixtral", FAMILIES["llama"])
    with pytest.raises(tp.InputError, match=r"each expert apart \(.*experts\.0\..*\), and they are joined only"):
        in_turn(tmp_path)
