"""Weights as people have them: any precision, sharded or not, tied, pickled; and files that are something else."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
import torch
from commands import call
from oracles.small_models import bert, opt
from safetensors.torch import load_file, save_file

import tightpass as tp
from tightpass.models.files import check_weights
from tightpass.models.loading import loaded, locate

PRECISIONS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def saved(path, model, **options):
    model.save_pretrained(path, **options)
    return path


def in_turn(path, dtype=torch.float64):
    """The same model with its layers left in the files."""
    return loaded(locate(str(path)), dtype, torch.device("cpu"), "pretrained", 0, in_turn=True)


def pickled(path):
    """The files of a saved model as files of `torch.save`."""
    names = {}
    for file in sorted(path.glob("*.safetensors")):
        bin_name = file.name.replace("model", "pytorch_model", 1).replace(".safetensors", ".bin")
        torch.save(load_file(file), path / bin_name)
        names[file.name] = bin_name
        file.unlink()
    index = path / "model.safetensors.index.json"
    if index.is_file():
        held = json.loads(index.read_text())
        held["weight_map"] = {key: names[name] for key, name in held["weight_map"].items()}
        (path / "pytorch_model.bin.index.json").write_text(json.dumps(held))
        index.unlink()
    return path


@pytest.mark.parametrize("stored", PRECISIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["safetensors", "bin", "shards", "bin shards"])
def test_any_precision_is_read_exactly(tmp_path, stored, dtype, kind):
    model = opt().to(stored)
    saved(tmp_path, model, max_shard_size="4KB" if "shards" in kind else "1GB")
    assert len(list(tmp_path.glob("*.safetensors"))) > (1 if "shards" in kind else 0)
    if "bin" in kind:
        pickled(tmp_path)
    whole, turns = tp.load_model(tmp_path, dtype=dtype), in_turn(tmp_path, dtype)
    for name, tensor in model.state_dict().items():
        expected = tensor.to(dtype)
        assert torch.equal(whole.base.state_dict()[name], expected), name
        assert torch.equal(torch.cat(list(turns.streamed.pieces(name))), expected), name
    assert whole.weights_hash() == turns.weights_hash()


def test_tied_weights_are_one(tmp_path):
    """Of an encoder and a decoder that share their table, and of a language model whose head is its table."""
    from transformers import OPTForCausalLM

    lm = OPTForCausalLM._from_config(opt().config, dtype=torch.float64).eval()
    lm.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    expected = tp.load_model(lm).weights_hash()
    assert tp.load_model(tmp_path).weights_hash() == in_turn(tmp_path).weights_hash() == expected


def test_a_tie_inside_of_the_model_is_kept(tmp_path):
    """The files have one of two names for one weight."""
    from tightpass.models.skeleton import compared, fill, tied, without_numbers
    from tightpass.models.stored import Safetensors

    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
            self.two.weight = self.one.weight

    drawn = Tied()
    save_file({"two.weight": drawn.two.weight.data, "one.bias": drawn.one.bias.data}, tmp_path / "a.safetensors")
    with without_numbers():
        empty = Tied()
    assert [keys for _, keys in tied(empty)] == [["one.weight", "two.weight"], ["one.bias"], ["two.bias"]]
    weights = Safetensors([tmp_path / "a.safetensors"])
    weights.beyond = []
    assert compared(empty, weights)["missing_keys"] == ["two.bias"]
    fill(empty, "", weights, torch.device("cpu"))
    assert empty.one.weight is empty.two.weight
    assert torch.equal(empty.one.weight, drawn.one.weight)


# ---- what is refused


def refused(capsys, monkeypatch, path, *said):
    capsys.readouterr()  # of saving
    code, out, err = call(capsys, monkeypatch, "run", "--model", path, "--tokens", 2, "--out", path / "run")
    assert (code, out) == (2, "")
    assert 1 <= len(err.splitlines()) <= 2, err
    assert all(part in err for part in said), err
    assert not (path / "run").exists()


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_an_index_that_names_a_file_that_is_not_there(tmp_path, capsys, monkeypatch, kind):
    saved(tmp_path, opt(), max_shard_size="4KB")
    if kind == "bin":
        pickled(tmp_path)
    gone = sorted(tmp_path.glob(f"*00002-of-*.{kind}"))[0]
    gone.unlink()
    refused(capsys, monkeypatch, tmp_path, f"{kind}.index.json names files that are not there: {gone.name}; fetch them")


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", '{"weight_map": 3}'])
def test_an_index_that_is_none(tmp_path, capsys, monkeypatch, content):
    saved(tmp_path, opt(), max_shard_size="4KB")
    (tmp_path / "model.safetensors.index.json").write_text(content)
    refused(capsys, monkeypatch, tmp_path, "index.json is no index of weights", "fetch it again")


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (Evil(), "holds objects besides tensors"),
        ({"a": torch.ones(2), "b": "text"}, "a dict of other things"),
        ([torch.ones(2)], "a list of other things"),
    ],
)
def test_a_pickle_that_is_not_weights(tmp_path, capsys, monkeypatch, content, said):
    saved(tmp_path, opt())
    (tmp_path / "model.safetensors").unlink()
    torch.save(content, tmp_path / "pytorch_model.bin")
    refused(capsys, monkeypatch, tmp_path, "pytorch_model.bin is no file of weights alone", said, "safetensors")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (pickle.dumps({"a": 1}), "is no file of weights alone"),
        (b"no pickle at all", "is no file of weights alone"),
    ],
)
def test_a_file_of_pickles_that_is_none(tmp_path, capsys, monkeypatch, content, said):
    saved(tmp_path, opt())
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    refused(capsys, monkeypatch, tmp_path, "pytorch_model.bin", said)


def test_truncated_pickles(tmp_path, capsys, monkeypatch):
    pickled(saved(tmp_path, bert()))
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-100])
    refused(capsys, monkeypatch, tmp_path, "pytorch_model.bin", "is truncated or damaged; fetch it again")


def test_safetensors_win_over_pickles(tmp_path):
    saved(tmp_path, opt())
    shutil.copy(tmp_path / "config.json", tmp_path / "pytorch_model.bin")
    check_weights(tmp_path)
    assert tp.load_model(tmp_path).weights == "pretrained"
