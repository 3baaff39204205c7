"""Models whose layers differ: some without attention; and those that have none of the blocks."""

from __future__ import annotations

import pytest
import torch
from oracles.family_models import made
from transformers import AutoConfig, AutoModel

import tightpass as tp
from tightpass.runs.jobs import blocks_of
from tightpass.runs.question import Config

IDS = [5, 17, 2, 30, 11, 7]
HYBRID = ["qwen3_next", "qwen3_5", "lfm2"]
SENTENCE = r"layer 0 of .* mixes tokens without attention, so that it has no block `attn` or `head`; layers 1 have"


@pytest.mark.parametrize("name", HYBRID)
@pytest.mark.parametrize("kind", ["attn", "head"])
def test_a_layer_without_attention_says_which_have_one(name, kind):
    with pytest.raises(tp.InputError, match=SENTENCE):
        tp.block(tp.load_model(made(name)), kind, layer=0, head=0 if kind == "head" else None, token_ids=IDS)


@pytest.mark.parametrize("name", HYBRID)
@pytest.mark.parametrize("kind", ["attn", "head"])
def test_all_layers_are_those_that_have_the_block(name, kind):
    shape = tp.load_model(made(name)).shape
    assert {block.layer for block in blocks_of(Config.of(block=kind), shape)} == {1}
    for layers in ("0", "0-1"):
        with pytest.raises(tp.InputError, match=SENTENCE.replace(".*", "(the model|demo)")):
            blocks_of(Config.of(block=kind, layers=layers), shape)
    for other in ("mlp", "layer"):
        assert [block.layer for block in blocks_of(Config.of(block=other), shape)] == [0, 1]


def test_a_run_of_all_layers(tmp_path):
    run = tp.run(made("lfm2"), block="attn", tokens=6, out=str(tmp_path / "run"))
    assert list(run.names) == ["L01.attn"]


def test_a_hybrid_model_has_a_whole():
    block = tp.block(tp.load_model(made("qwen3_5")), "model", token_ids=IDS)
    with torch.no_grad():
        given = made("qwen3_5")(input_ids=torch.tensor([IDS]), use_cache=False).last_hidden_state[0]
    assert float((block(block.x) - given).abs().max()) <= 1e-5 * float(given.abs().max())


def test_a_model_without_blocks_says_what_can_be_had():
    config = AutoConfig.for_model("mamba", hidden_size=12, vocab_size=37, num_hidden_layers=1, state_size=3)
    base = AutoModel.from_config(config).eval()
    with pytest.raises(
        tp.InputError, match=r"'mamba' has no attention or MLP blocks: .*\n.*tp\.jacobian\(tp\.block\(model, module="
    ):
        tp.load_model(base)
    J = tp.jacobian(lambda x: base.layers[0](x[None])[0], torch.randn(6, 12))
    assert J.shape == (72, 72)


def test_models_without_a_limit_take_any_number_of_tokens():
    model = tp.load_model(made("bloom"))
    assert model.shape.positions is None
    assert tp.block(model, "attn", layer=1, token_ids=IDS * 12).tokens == 72
