"""GGUF files: read into what Hugging Face's own files hold, or refused in words."""

from __future__ import annotations

import copy
import sys

import gguf
import gguf_writing
import numpy as np
import pytest
import torch
from commands import call
from oracles import family_models
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

import tightpass as tp
from tightpass.models.capture import capture
from tightpass.models.gguf_files import opened
from tightpass.models.gguf_header import read_header
from tightpass.models.gguf_models import ARCHITECTURES
from tightpass.models.gguf_tokens import tokenizer_of

IDS = torch.tensor([5, 17, 2, 8, 31, 2])
TYPES = gguf.GGMLQuantizationType
DROPPED = {"stablelm": {"qk_layernorm": False}, "gpt2": {"scale_attn_by_inverse_layer_idx": False}}
"""What files of an architecture cannot say, or not in one tensor."""


def model_of(arch):
    """A random model whose weights, and they plus one, are float32 numbers."""
    kind, settings = family_models.CASES[arch]
    family_models.CASES["for gguf"] = (kind, settings | DROPPED.get(arch, {}) | {"attention_bias": arch == "llama"})
    family_models.made.cache_clear()
    try:
        model = copy.deepcopy(family_models.made("for gguf"))
    finally:
        del family_models.CASES["for gguf"]
        family_models.made.cache_clear()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * 4096).round() / 4096)
    return model


def extra_of(arch, model):
    """The scale of Gemma 2 is that of its heads' width."""
    if arch == "gemma2":
        model.config.query_pre_attn_scalar = model.config.head_dim
        for layer in model.layers:
            layer.self_attn.scaling = model.config.head_dim**-0.5
    if arch == "qwen2":
        model.config.layer_types = ["full_attention"] * 2
        model.config.sliding_window = None
        for layer in model.layers:
            layer.self_attn.sliding_window = None
            layer.attention_type = "full_attention"
        model.has_sliding_layers = False


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_file_is_the_model_that_it_was_made_of(tmp_path, arch):
    model = model_of(arch)
    extra_of(arch, model)
    read = tp.load_model(gguf_writing.written(tmp_path / "m.gguf", model, arch))
    own, found = model.state_dict(), read.base.state_dict()
    assert own.keys() == found.keys()
    for key, tensor in own.items():
        assert torch.equal(found[key], tensor), key
    calls = [capture(m, IDS).calls["1.layer"].y for m in (read, tp.load_model(model))]
    assert torch.equal(*calls)
    assert read.weights == "pretrained"


def test_rotary_factors_of_llama_3(tmp_path):
    model = model_of("llama")
    factors = torch.tensor([1.0, 8.0])
    path = tmp_path / "m.gguf"
    writer, written = gguf.GGUFWriter, {}

    class WithFactors(writer):
        def write_header_to_file(self, *args):
            self.add_tensor("rope_freqs.weight", factors.numpy())
            super().write_header_to_file(*args)

    gguf.GGUFWriter, written["by"] = WithFactors, writer
    try:
        gguf_writing.written(path, model, "llama")
    finally:
        gguf.GGUFWriter = writer
    found = tp.load_model(path).base.rotary_emb.inv_freq
    assert torch.equal(found, model.rotary_emb.inv_freq / factors)


@pytest.mark.parametrize("kind", [TYPES.Q8_0, TYPES.Q4_1, TYPES.F16, TYPES.BF16])
def test_what_is_dequantised_is_said(tmp_path, capsys, monkeypatch, kind):
    torch.manual_seed(0)
    model = wide_llama()
    path = gguf_writing.written(tmp_path / "m.gguf", model, "llama", kind)
    said = "dequantised " + kind.name
    quantised = kind in (TYPES.Q8_0, TYPES.Q4_1)
    options = ["--model", path, "--block", "mlp", "--tokens", 2, "--layers", 0, "--out", tmp_path / "run"]
    code, out, err = call(capsys, monkeypatch, "run", *options)
    assert code == 0, err
    assert (said in out, said in err) == (quantised, quantised)
    assert ("not of the one before" in out) == quantised
    assert tp.open(tmp_path / "run").provenance["weights"] == (said if quantised else "pretrained")
    code, out, err = call(capsys, monkeypatch, "plan", *options)
    assert (said in out) == quantised
    found = tp.load_model(path, dtype="float32").base.get_parameter("layers.1.mlp.up_proj.weight")
    reader = {t.name: t for t in gguf.GGUFReader(path).tensors}["blk.1.ffn_up.weight"]
    assert np.array_equal(found.numpy(), gguf.quants.dequantize(reader.data, reader.tensor_type))


def wide_llama(**changes):
    """Rows of whole blocks: 32 numbers each."""
    from transformers import LlamaConfig, LlamaModel

    sizes = {"vocab_size": 37, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16}
    ends = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    return LlamaModel._from_config(LlamaConfig(**sizes | heads | ends | changes), dtype=torch.float64).eval()


def test_headers_are_those_that_the_package_reads(tmp_path):
    fields = {"a__list": [1, 2, 3], "a__text": "naïve", "a__flag": True, "a__words": ["one", ""], "a__part": 0.25}
    path = gguf_writing.written(tmp_path / "m.gguf", wide_llama(), "llama", TYPES.Q8_0, **fields)
    header, reader = read_header(path), gguf.GGUFReader(path)
    assert {name: reader.fields[name].contents() for name in header.fields} == header.fields
    assert header.fields["a.words"] == ["one", ""]
    assert len(header.tensors) == len(reader.tensors)
    for tensor in reader.tensors:
        found = header.tensors[tensor.name]
        assert found.shape == tuple(reversed(tensor.shape.tolist()))
        assert (found.kind, found.start) == (tensor.tensor_type, tensor.data_offset)


# ---- tokenizers


def train(tokenizer, trainer):
    text = ["the cat sat on the mat, and 1234 cats sat there; don't the mats matter?", "naïve café — 12 £"] * 3
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def byte_level():
    """The tokenizers of GPT-2's kind, single digits first."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return train(made, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=["<|end|>"]))


def pieces():
    """Those of Llama's kind: the space is a letter."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return train(made, trainers.BpeTrainer(vocab_size=330, special_tokens=special))


def vocabulary(tokenizer):
    return [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]


TEXTS = ("the cat sat 1234 times", "don't matter", "  naïve?  £12 ", "the mats — 9")


def test_a_byte_level_tokenizer_is_the_one_that_was_written(tmp_path):
    import json

    own = byte_level()
    merges = [" ".join(pair) for pair in json.loads(own.to_str())["model"]["merges"]]
    tokens = vocabulary(own)
    fields = {
        "tokenizer__ggml__model": "gpt2",
        "tokenizer__ggml__pre": "smollm",
        "tokenizer__ggml__tokens": tokens,
        "tokenizer__ggml__merges": merges,
        "tokenizer__ggml__token_type": [3] + [1] * (len(tokens) - 1),
        "tokenizer__ggml__bos_token_id": 0,
    }
    path = gguf_writing.written(tmp_path / "m.gguf", wide_llama(vocab_size=len(tokens)), "llama", **fields)
    found = tp.load_model(path).tokenizer
    for text in TEXTS:
        assert found(text)["input_ids"] == own.encode(text).ids, text
        assert found.decode(found(text)["input_ids"]) == text
    assert found("the<|end|>cat")["input_ids"].count(0) == 1


def test_pieces_are_the_ones_that_were_written(tmp_path):
    import json

    own = pieces()
    merged = ["".join(pair) for pair in json.loads(own.to_str())["model"]["merges"]]
    tokens = vocabulary(own)
    fields = {
        "tokenizer__ggml__model": "llama",
        "tokenizer__ggml__tokens": tokens,
        "tokenizer__ggml__scores": [-float(merged.index(t)) if t in merged else -1e6 for t in tokens],
        "tokenizer__ggml__token_type": [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259),
        "tokenizer__ggml__bos_token_id": 1,
        "tokenizer__ggml__unknown_token_id": 0,
    }
    path = gguf_writing.written(tmp_path / "m.gguf", wide_llama(vocab_size=len(tokens)), "llama", **fields)
    found = tp.load_model(path).tokenizer
    for text in TEXTS:
        assert found(text)["input_ids"] == [1, *own.encode(text).ids], text
        assert found(text, add_special_tokens=False)["input_ids"] == own.encode(text).ids


def test_a_tokenizer_of_another_kind_is_replaced_by_token_ids_and_said(tmp_path, capsys):
    fields = {"tokenizer__ggml__model": "gpt2", "tokenizer__ggml__pre": "nonesuch"}
    path = gguf_writing.written(tmp_path / "m.gguf", wide_llama(), "llama", **fields)
    assert tokenizer_of(opened(path)) is None
    tp.run(path, tokens=2, layers="0", out=tmp_path / "run", discard_jacobian=True)
    err = capsys.readouterr().err
    assert "its tokenizer (gpt2, nonesuch) cannot be built" in err
    assert "random token ids (seed 0)" in err


# ---- what is refused


def refused(capsys, monkeypatch, path, *said):
    """In one or two lines, with exit code 2, by every command that reads a model."""
    for command in ("plan", "run"):
        code, out, err = call(capsys, monkeypatch, command, "--model", path, "--tokens", 2)
        assert (code, out) == (2, "")
        assert 1 <= len(err.splitlines()) <= 2, err
        assert all(part in err for part in said), err


@pytest.fixture
def whole(tmp_path):
    return gguf_writing.written(tmp_path / "m.gguf", wide_llama(), "llama", TYPES.Q8_0)


@pytest.mark.parametrize("left", [0, 3, 30, 400, 3000, -8])
def test_truncated_files(whole, capsys, monkeypatch, left):
    whole.write_bytes(whole.read_bytes()[:left])
    refused(capsys, monkeypatch, whole, "m.gguf", "is empty" if left == 0 else "GGUF" if left == 3 else "truncated")


def test_a_pointer_instead_of_a_file(whole, capsys, monkeypatch):
    whole.write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(capsys, monkeypatch, whole, "is a Git LFS pointer")


def test_unknown_architectures(tmp_path, capsys, monkeypatch):
    path = gguf_writing.written(tmp_path / "m.gguf", wide_llama(), "llama")
    path.write_bytes(path.read_bytes().replace(b"llama", b"maaam"))
    refused(
        capsys, monkeypatch, path, "architecture 'maaam'; GGUF files are read of llama, qwen2", "Hugging Face format"
    )


def test_mixtures_of_experts_parts_and_stretched_positions(tmp_path, capsys, monkeypatch):
    path = gguf_writing.written(tmp_path / "a.gguf", wide_llama(), "llama", llama__expert_count=4)
    refused(capsys, monkeypatch, path, "mixture of experts")
    path = gguf_writing.written(tmp_path / "b.gguf", wide_llama(), "llama", split__count=2)
    refused(capsys, monkeypatch, path, "one of 2 parts; merge them")
    path = gguf_writing.written(tmp_path / "c.gguf", wide_llama(), "llama", llama__rope__scaling__type="yarn")
    refused(capsys, monkeypatch, path, "stretches its rotary positions (yarn)")


def test_types_that_cannot_be_dequantised(whole, capsys, monkeypatch):
    """Q8_1 is a type that gguf knows the size of and no more; 4 is a number that it does not know."""
    content = whole.read_bytes()
    at = content.index(b"blk.1.ffn_up.weight") + len(b"blk.1.ffn_up.weight") + 4 + 2 * 8
    assert content[at] == TYPES.Q8_0
    whole.write_bytes(content[:at] + bytes([TYPES.Q8_1]) + content[at + 1 :] + bytes(2**14))
    refused(capsys, monkeypatch, whole, "blk.1.ffn_up.weight", "is quantised as Q8_1, which the package gguf cannot")
    whole.write_bytes(content[:at] + bytes([4]) + content[at + 1 :])
    refused(
        capsys,
        monkeypatch,
        whole,
        "holds a tensor of a type (number 4) that this version of gguf does not know",
        "pip install --upgrade gguf",
    )


def test_tensors_that_lack_or_are_left_over(tmp_path, capsys, monkeypatch):
    path = gguf_writing.written(tmp_path / "a.gguf", wide_llama(), "llama", leave_out=("blk.1.ffn_up.weight",))
    code, _, err = call(capsys, monkeypatch, "run", "--model", path, "--tokens", 2)
    assert code == 2
    assert "1 weights of" in err
    assert "layers.1.mlp.up_proj.weight" in err
    model = wide_llama()
    model.layers[0].self_attn.q_norm = torch.nn.RMSNorm(8)
    path = gguf_writing.written(tmp_path / "b.gguf", model, "llama")
    code, _, err = call(capsys, monkeypatch, "run", "--model", path, "--tokens", 2)
    assert code == 2
    assert "a llama has no place for: blk.0.attn_q_norm.weight" in err


def test_directories(whole, capsys, monkeypatch):
    assert tp.load_model(whole.parent).name == str(whole)
    (whole.parent / "b.gguf").write_bytes(whole.read_bytes())
    refused(capsys, monkeypatch, whole.parent, "holds 2 GGUF files (b.gguf, m.gguf); give one of them")


def test_the_package_that_is_not_there(whole, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(capsys, monkeypatch, whole, "package gguf, which is not installed: pip install 'tightpass[gguf]'")
