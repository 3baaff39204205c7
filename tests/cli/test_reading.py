"""How many tokens, which layers, and directions by token: what is read without being counted out first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from commands import call

import tightpass as tp
from tightpass.runs.question import Config, parse_layers

TEXT = "Through how few directions does a block pass information?"
IDS = [5, 17, 2, 88]


@pytest.fixture(scope="module")
def demo():
    return tp.load_model("demo")


def own(demo, text, **options):
    return len(demo.tokenizer(text, **options)["input_ids"])


# ---- tokens


def test_a_text_has_its_own_length(demo):
    count = own(demo, TEXT)
    assert count not in (64, 0)
    assert tp.block(demo, "mlp", 0, text=TEXT).tokens == count
    assert tp.block(demo, "mlp", 0, text=TEXT, special=False).tokens == own(demo, TEXT, add_special_tokens=False)
    assert tp.block(demo, "mlp", 0, text=TEXT, tokens=3).tokens == 3
    assert tp.block(demo, "mlp", 0).tokens == 64
    assert tp.block(demo, "mlp", 0, text=TEXT * 100).tokens == demo.shape.positions


@pytest.mark.parametrize("given", ["text", "text_file"])
def test_plan_directory_and_run_follow_the_text(demo, tmp_path, monkeypatch, capsys, given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    count, asked = own(demo, TEXT), {given: TEXT if given == "text" else "text.txt"}
    assert tp.plan(layers="1", **asked).shape == (count * 128, count * 128)
    code, out, _ = call(capsys, monkeypatch, "run", "--layers", "1", f"--{given.replace('_', '-')}", asked[given])
    assert code == 0
    assert f"{count} tokens" in out
    run = tp.open(f"runs/demo-mlp-t{count}")
    assert len(run.token_ids) == run.config.tokens == count
    assert (
        call(capsys, monkeypatch, "run", "--config", str(run.directory / "run.yaml"))[0] == 0
    )  # it is the same question
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [f"demo-mlp-t{count}"]


def test_the_bundled_text_keeps_its_length_and_prompts_theirs(tmp_path):
    assert tp.plan(layers="1").shape == (64 * 128, 64 * 128)
    with pytest.raises(tp.InputError, match=r"prompt 1 .*64 were asked for"):
        tp.run(prompts=["a few words"], layers="1", out=str(tmp_path / "run"))


def test_a_text_that_has_no_tokens(tmp_path):
    for take in (tp.plan, lambda **given: tp.block(tp.load_model("demo"), "mlp", 0, **given)):
        with pytest.raises(tp.InputError, match="the text is empty"):
            take(text=" \n")


# ---- ids


@pytest.mark.parametrize("ids", [IDS, tuple(IDS), np.array(IDS), torch.tensor(IDS)])
def test_ids_of_a_run_are_stored_and_replayed(tmp_path, demo, ids):
    run = tp.run(token_ids=ids, layers="1", out=str(tmp_path / "run"))
    assert run.token_ids == tuple(IDS)
    assert run.provenance["tokens"] == "given token ids"
    expected = tp.spectrum(tp.jacobian(tp.block(demo, "mlp", 1, token_ids=IDS))).values
    assert np.array_equal(run["L01.mlp"].values, expected)
    assert [len(run), [s.name for s in run], "L01.mlp" in run, "L02.mlp" in run] == [1, ["L01.mlp"], True, False]
    stored = Config.read(tmp_path / "run" / "run.yaml")
    assert (stored.token_ids, stored.tokens) == (IDS, 4)
    again = tp.run(**stored.model_dump(exclude={"out"}), out=str(tmp_path / "again"))
    assert np.array_equal(again["L01.mlp"].values, expected)
    assert tp.plan(token_ids=ids).shape == (512, 512)


def test_ids_name_their_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tp.run(token_ids=IDS, layers="1").directory.name == "demo-mlp-t4"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_ids": "5 17"}, "token_ids: .*expected a list of integers"),
        ({"token_ids": [1.5]}, "expected a list of integers"),
        ({"token_ids": [True]}, "expected a list of integers"),
        ({"token_ids": [[1, 2]]}, "expected a list of integers"),
        ({"token_ids": []}, "tokens must be at least 1, got 0"),
        ({"token_ids": [10**6]}, "token ids must lie in 0.."),
        ({"token_ids": [-1]}, "token ids must lie in 0.."),
        ({"token_ids": IDS, "tokens": 5}, "token_ids has 4 ids, 5 tokens were asked for"),
        ({"token_ids": IDS, "text": "words"}, "give token_ids or a text, not both"),
        ({"token_ids": IDS, "prompts": ["words"]}, "give token_ids or a text, not both"),
        ({"token_ids": [1] * 300}, "has 256 positions, 300 tokens"),
    ],
)
def test_ids_that_cannot_be(options, message, tmp_path):
    with pytest.raises(tp.InputError, match=message):
        tp.run(**options, out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_ids_are_no_flag(capsys, monkeypatch):
    assert call(capsys, monkeypatch, "run", "--token-ids", "5")[0] == 2


# ---- layers


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("-1", [5]),
        ("0,-1", [0, 5]),
        ("-3--1", [3, 4, 5]),
        ("1--4", [1, 2]),
        ("5,-1", [5]),
        (" -2 , 0 - 1", [0, 1, 4]),
    ],
)
def test_layers_count_from_the_end(layers, expected):
    assert parse_layers(layers, 6) == expected


@pytest.mark.parametrize("layers", ["-7", "6", "-1-0", "1--6", "--1", "-", "1-", "-1-"])
def test_layers_that_are_not_there(layers):
    with pytest.raises(tp.InputError, match=r"layers|upwards"):
        parse_layers(layers, 6)


@pytest.mark.parametrize("layers", [-1, np.int64(-1), [-1], range(5, 6), np.array([5]), torch.tensor([-1]), "-1"])
def test_layers_of_a_run_and_a_plan(layers):
    assert tp.plan(layers=layers, tokens=2).jobs == ("L05.mlp",)


def test_negative_layers_on_the_command_line(capsys, monkeypatch, tmp_path):
    code, out, _ = call(capsys, monkeypatch, "run", "--layers", "-2", "--tokens", "2", "--out", str(tmp_path / "run"))
    assert code == 0
    assert "L04.mlp" in out
    assert tp.open(tmp_path / "run").names == ["L04.mlp"]


@pytest.mark.parametrize("layer", [-1, np.int32(-1), np.int64(5)])
def test_the_last_layer_of_a_block(demo, layer):
    assert tp.block(demo, "mlp", layer=layer, tokens=2).name == "L05.mlp"


def test_a_layer_before_the_first(demo):
    with pytest.raises(tp.InputError, match=r"demo has layers 0\.\.5, or -6\.\.-1 from the end, got -7"):
        tp.block(demo, "mlp", layer=-7, tokens=2)


# ---- directions


def test_directions_are_read_by_token(demo, tmp_path):
    """J v = σ u, in the shapes of activations; from a stored run as well."""
    block = tp.block(demo, "mlp", layer=1, tokens=4)
    J = tp.jacobian(block)
    S = tp.spectrum(J, vectors=3)
    run = tp.run(layers="1", tokens=4, vectors=3, out=str(tmp_path / "run"))
    for found in (
        S,
        run["L01.mlp"],
        tp.open(tmp_path / "run")["L01.mlp"],
        tp.spectrum(J, method="topk", k=3, vectors=3),
    ):
        for i in range(3):
            v, u = found.right(i), found.left(i)
            assert v.shape == u.shape == (4, 128)
            assert abs(J @ v.reshape(-1) - found.values[i] * u.reshape(-1)).max() <= 1e-12 * found.values[0]
    x = block.x.numpy()
    assert np.isclose((x * S.right(0)).sum(), S.Vh[0] @ x.reshape(-1), rtol=1e-12)


def test_directions_of_other_numbers_of_tokens():
    """y of two tokens, x of three; and of the transpose the other way."""
    W = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    J = tp.jacobian(lambda x: W @ x[:, :4], torch.ones(3, 5, dtype=torch.float64))
    for method in ({"method": "exact"}, {"method": "topk", "k": 2}):
        S, turned = tp.spectrum(J, vectors=2, **method), tp.spectrum(J.T, vectors=2, **method)
        assert (S.right(1).shape, S.left(1).shape) == ((3, 5), (2, 4))
        assert (turned.right(1).shape, turned.left(1).shape) == ((2, 4), (3, 5))


@pytest.mark.parametrize(
    ("vectors", "i", "message"),
    [
        (0, 0, "no singular vectors of L01.mlp were kept; ask for some by vectors="),
        (2, 2, "a singular vector: expected a whole number from 0 to 1, got 2"),
        (2, -1, "from 0 to 1, got -1"),
        (2, 0.5, "expected a whole number"),
    ],
)
def test_directions_that_were_not_kept(demo, vectors, i, message):
    S = tp.spectrum(tp.jacobian(tp.block(demo, "mlp", layer=1, tokens=2)), vectors=vectors)
    for side in (S.right, S.left):
        with pytest.raises(tp.InputError, match=message):
            side(i)
