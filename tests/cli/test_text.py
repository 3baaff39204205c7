"""Texts, prompts and numbers come in as they were written."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from oracles.small_models import bert

import tightpass as tp
from tightpass.models.tokens import check_ids, tokenize
from tightpass.runs.check import read_text
from tightpass.runs.directory import write_question
from tightpass.runs.prompts import texts_of
from tightpass.runs.question import Config

IDS = [5, 17, 2, 88]
BOM = b"\xef\xbb\xbf"


# ---- the number of tokens


@pytest.mark.parametrize("given", [None, "some words that are long enough"])
@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("tokens", [1, 2, 3, 5])
def test_so_many_tokens_as_asked_for_or_none(minilm, tokens, special, given):
    model = tp.load_model(minilm)
    if special and tokens < 2:
        with pytest.raises(tp.InputError, match=r"cannot cut the .* text to 1 tokens, it gives \d+: special tokens"):
            tokenize(model, tokens, given, special)
    else:
        assert len(tokenize(model, tokens, given, special).ids) == tokens


def test_ids_beyond_the_vocabulary_are_refused(minilm):
    foreign = bert()
    foreign.config.name_or_path = minilm  # its tokenizer has 30 522 ids, the model 97
    model = tp.load_model(foreign)
    with pytest.raises(tp.InputError, match=r"gives ids up to \d+, the model has 0..96: it belongs to another model"):
        tokenize(model, 4)
    foreign.config.vocab_size = 5000  # what the configuration says does not count
    with pytest.raises(tp.InputError, match=r"must lie in 0..96, got 5..97"):
        tp.block(tp.load_model(foreign), "mlp", layer=0, token_ids=[5, 97])


# ---- text


@pytest.mark.parametrize("content", ["Some words.", "a\u2028b\x0cc\x85d", "\n two lines\n"])
def test_text_is_read_as_it_was_written(tmp_path, monkeypatch, content):
    path = tmp_path / "text.txt"
    for start in (b"", BOM):
        for ends in ("\n", "\r\n", "\r"):
            written = start + content.replace("\n", ends).encode()
            path.write_bytes(written)
            assert read_text(Config.of(text_file=str(path))) == content
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(written), encoding="ascii"))
            assert read_text(Config.of(text_file="-")) == content


def test_prompts_are_lines_and_nothing_else_cuts_them(tmp_path):
    prompts = ["one\u2028line", "a form\x0cfeed", "\u00a0next\x85line\x1c"]
    for ends in ("\n", "\r\n", "\r"):
        path = tmp_path / "prompts.txt"
        path.write_bytes(BOM + ends.join([*prompts[:2], "  ", prompts[2], ""]).encode())
        assert texts_of(Config.of(prompts=str(path))) == prompts


def test_a_config_may_have_a_byte_order_mark(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(BOM + "tokens: 3\ntext: é x\n".encode())
    assert Config.read(str(path)).tokens == 3
    path.write_bytes("tokens: 3".encode("utf-16"))
    with pytest.raises(tp.InputError, match="it is not UTF-8 text"):
        Config.read(str(path))


@pytest.mark.parametrize("content", ["é 日本 😀", "a\u2028b\x85\ufeff\n c ", "\ttab\r\nnull: #"])
def test_a_question_is_stored_as_it_was_asked(tmp_path, content):
    config = Config.of(text=content, out=str(tmp_path))
    write_question(tmp_path, config)
    assert Config.read(str(tmp_path / "run.yaml")).question() == config.question()


def test_a_question_is_stored_in_utf8_whatever_the_locale(tmp_path):
    program = "import sys; from pathlib import Path; from tightpass.runs.directory import *; "
    program += "write_question(Path(sys.argv[1]).parent, Config.of(text='caf\\u00e9'))"
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    path = tmp_path / "run.yaml"
    done = subprocess.run([sys.executable, "-c", program, path], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "text: café\n".encode() in path.read_bytes()


@pytest.mark.parametrize("given", [{"text": "a \ud800 b"}, {"prompts": ["fine", "a \ud800"]}, {"model": "\udcff"}])
def test_half_of_a_surrogate_pair_is_no_text(given, tmp_path):
    with pytest.raises(tp.InputError, match=r"'\\ud[89abcdef0]{3}' at position \d, which is half of a surrogate pair"):
        tp.run(**given, out=str(tmp_path / "run"))
    if "text" in given:
        with pytest.raises(tp.InputError, match="half of a surrogate pair"):
            tp.block(tp.load_model("demo"), "mlp", layer=0, tokens=2, **given)


# ---- numbers


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8])
def test_numpy_integers_are_integers(small_opt, integer):
    model = tp.load_model(small_opt)
    block = tp.block(model, "head", layer=integer(1), head=integer(2), token_ids=np.array(IDS, dtype=integer))
    same = tp.block(model, "head", layer=1, head=2, token_ids=IDS)
    assert block.name == "L01.H02"
    assert torch.equal(block.x, same.x)
    assert tp.block(model, "mlp", layer=0, tokens=integer(3)).tokens == 3
    config = Config.of(tokens=integer(5), head=integer(1), seed=integer(2), layers=[integer(1), integer(0)])
    assert config == Config.of(tokens=5, head=1, seed=2, layers="1,0")
    assert type(config.tokens) is int


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        (range(3), "0,1,2"),
        (range(4, 0, -2), "4,2"),
        (np.arange(2), "0,1"),
        (np.int64(3), "3"),
        (torch.arange(2), "0,1"),
    ],
)
def test_layers_as_python_has_them(layers, text):
    assert Config.of(layers=layers).layers == text


@pytest.mark.parametrize("ids", [[2**70], ["a"], [[1, 2]], [True, False], 5, [None], [1.5]])
def test_token_ids_that_are_none(small_opt, ids):
    with pytest.raises(tp.InputError, match="token_ids must be a list of integers"):
        check_ids(tp.load_model(small_opt), ids)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("tokens: 4\nseed: 1\ntokens: 5\n", r"\(line 3\): 'tokens' stands there twice"),
        ("tokens: 4\n\tseed: 1\n", r"\(line 2\): .*spaces, not tabs"),
        ("layers: [0\n", r"as YAML \(line 2\)"),
        ("seed: null\n", "seed: expected a whole number, got None"),
        ("norm: perhaps\n", "norm: expected true or false"),
    ],
)
def test_settings_that_cannot_be_read_are_refused_with_their_place(tmp_path, content, words):
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(tp.InputError, match=words):
        Config.read(str(path))
