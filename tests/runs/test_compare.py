"""Two runs against each other, several prompts, and every value with its label."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from commands import call

import tightpass as tp
from tightpass.rank.floor import Floor
from tightpass.rank.interval import LABELS
from tightpass.rank.records import Part

QUESTION = {"model": "demo", "tokens": 4, "layers": "1-2", "discard_jacobian": True}
PROMPTS = ["Once upon a time there was a little girl.", "Tom and his friend went to the lake to swim."]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    return {
        name: tp.run(**QUESTION | changes, out=str(folder / name))
        for name, changes in {
            "a": {},
            "again": {"threads": 1},
            "float32": {"dtype": "float32"},
            "topk": {"method": "topk", "k": 8},
            "longer": {"tokens": 5},
            "other layers": {"layers": "3"},
            "attn": {"block": "attn"},
        }.items()
    }


def test_a_run_is_the_same_as_itself_and_as_its_repetition(runs):
    for other in ("a", "again", "topk"):
        found = tp.compare(runs["a"].directory, runs[other].directory)
        assert found.different == ()
        assert found.unlike == ()
        assert [d.name for d in found.differences] == ["L01.mlp", "L02.mlp"]
        assert all(not d.ranks_differ and d.beyond == 0 for d in found.differences)


@pytest.mark.parametrize(
    ("other", "reason"),
    [("float32", "dtype float64 and float32"), ("longer", "4 and 5 tokens"), ("attn", "block mlp and attn")],
)
def test_different_questions_are_refused(runs, other, reason):
    with pytest.raises(tp.InputError, match=reason):
        tp.compare(runs["a"].directory, runs[other].directory)


def test_forced_comparisons_say_what_is_not_the_same(runs):
    found = tp.compare(runs["a"].directory, runs["float32"].directory, force=True)
    assert found.unlike == ("dtype float64 and float32",)
    assert all(d.sizes == (512, 512) for d in found.differences)
    longer = tp.compare(runs["a"].directory, runs["longer"].directory, force=True)
    assert len(longer.different) == 2
    assert "512 and 640 values in all" in str(longer.differences[0])


@pytest.mark.parametrize("other", ["attn", "other layers"])
def test_nothing_in_common(runs, other):
    with pytest.raises(tp.InputError, match="no block is in both"):
        tp.compare(runs["a"].directory, runs[other].directory, force=True)


@pytest.mark.parametrize(("floors", "different"), [(0.9, False), (1.1, True), (40.0, True)])
def test_a_value_is_different_beyond_both_floors_and_not_before(runs, floors, different):
    S = runs["a"]["L01.mlp"]
    part = Part("planted", 1e-9 * float(S.values[0]), "far above the rounding of a sum", "certain")
    S = replace(S, floor=Floor((part,), S.floor.conventional))
    moved = S.values.copy()
    moved[3] += 2 * floors * S.floor.total
    found = tp.difference(S, replace(S, values=np.sort(moved)[::-1]))
    assert found.different == different
    assert found.beyond == int(different)
    assert found.index == 4
    assert found.floors == pytest.approx(floors, rel=0.05, abs=0)
    assert ("the same" in str(found)) != different


def test_ranks_that_no_number_fits_differ(runs):
    S = runs["a"]["L01.mlp"]
    fewer = S.values.copy()
    fewer[S.rank.lo - 2 :] = 0
    found = tp.difference(S, replace(S, values=fewer))
    assert found.ranks_differ
    assert "differ" in str(found)
    assert not tp.difference(S, S).ranks_differ


def test_compare_on_the_command_line(runs, capsys, monkeypatch):
    a, b = runs["a"].directory, runs["float32"].directory
    code, out, err = call(capsys, monkeypatch, "compare", a, runs["again"].directory)
    assert (code, err) == (0, "")
    assert "0 of 2 blocks differ beyond their floors" in out
    code, _, err = call(capsys, monkeypatch, "compare", a, b)
    assert code == 2
    assert "--force compares them all the same" in err
    code, out, _ = call(capsys, monkeypatch, "compare", a, b, "--force", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["unlike"] == ["dtype float64 and float32"]
    assert [block["name"] for block in document["blocks"]] == ["L01.mlp", "L02.mlp"]
    code, _, err = call(capsys, monkeypatch, "compare", a, a / "nothing")
    assert code == 2
    assert "not a run directory" in err


# ---- several prompts


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return tp.run(**QUESTION, prompts=PROMPTS, out=str(tmp_path_factory.mktemp("prompts") / "p"))


def test_each_prompt_is_an_ordinary_run(prompts, tmp_path):
    assert prompts.names == ["001", "002"]
    alone = tp.run(**QUESTION, text=PROMPTS[1], out=str(tmp_path / "alone"))
    assert tp.compare(prompts.runs[1].directory, alone.directory).different == ()
    assert np.array_equal(prompts.runs[1]["L02.mlp"].values, alone["L02.mlp"].values)


def test_the_spread_over_prompts(prompts):
    table = prompts.table()
    both = [run.table().loc["L01.mlp", "stable_rank"] for run in prompts.runs]
    row = table.loc[("L01.mlp", "stable_rank")]
    assert (row["001"], row["002"]) == tuple(both)
    assert row["mean"] == pytest.approx(np.mean(both))
    assert row["sd"] == pytest.approx(np.std(both, ddof=1))
    assert (row["low"], row["high"]) == (min(both), max(both))


def test_prompts_from_a_file_continue_where_they_stopped(tmp_path, capsys, monkeypatch):
    path, out = tmp_path / "prompts.txt", tmp_path / "p"
    path.write_text("\n".join(["", *PROMPTS, "  ", PROMPTS[0] + " Again."]))
    options = ["--tokens", "4", "--layers", "1", "--discard-jacobian"]
    code, text, err = call(capsys, monkeypatch, "run", "--prompts", path, "--out", out, *options)
    assert (code, err) == (0, "")
    assert "3 prompts" in text
    kept = (out / "prompts" / "002" / "results.h5").stat().st_mtime_ns
    (out / "prompts" / "003" / "results.h5").unlink()
    (out / "prompts" / "003" / "records" / "L01.mlp.h5").unlink()
    (out / "prompts" / "003" / "journal.jsonl").unlink()
    assert tp.open(out).unfinished == 1
    with pytest.raises(tp.VerificationError, match="1 of 3 prompts are not done"):
        tp.verify(out)
    assert "1 of 3 prompts are not done" in call(capsys, monkeypatch, "show", out)[1]
    call(capsys, monkeypatch, "run", "--config", out / "run.yaml", "--out", out)
    assert tp.open(out).unfinished == 0
    assert (out / "prompts" / "002" / "results.h5").stat().st_mtime_ns == kept
    assert len(tp.verify(out)) == 3
    document = json.loads(call(capsys, monkeypatch, "show", out, "--json")[1])
    assert [prompt["name"] for prompt in document["prompts"]] == ["001", "002", "003"]
    assert {row["measure"] for row in document["spread"]} >= {"rank_low", "stable_rank", "knee_index"}


def test_prompts_are_opened_by_their_records(prompts, tmp_path):
    """As where a run of several was killed before it gathered the first."""
    copy = shutil.copytree(prompts.directory, tmp_path / "p")
    for path in copy.glob("prompts/*/results.h5"):
        path.unlink()
    assert tp.open(copy).names == ["001", "002"]
    assert tp.open(copy).unfinished == 0
    assert len(tp.verify(copy)) == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompts": PROMPTS, "text": "Both."}, "give --prompts or a text"),
        ({"prompts": []}, "has no prompt"),
        (
            {"prompts": ["Long enough to have four tokens.", "Short"], "tokens": 9},
            r"prompt 2 \('Short'\): the given text has 4 tokens",
        ),
        ({"prompts": "no/such/file"}, "cannot read no/such/file"),
        ({"prompts": PROMPTS, "model": "opt-125m", "weights": "random"}, "has no tokenizer"),
    ],
)
def test_prompts_that_cannot_be_used(tmp_path, given, message):
    with pytest.raises(tp.InputError, match=message):
        tp.run(**QUESTION | given, out=str(tmp_path / "a"))
    assert not (tmp_path / "a").exists()


def test_a_directory_of_prompts_is_not_compared(prompts, runs):
    with pytest.raises(tp.InputError, match="several prompts"):
        tp.compare(prompts.directory, runs["a"].directory)


# ---- labels in files


def test_every_value_with_its_label(runs, capsys, monkeypatch):
    import io

    run = runs["a"]
    code, out, _ = call(capsys, monkeypatch, "show", run.directory, "--values")
    table = pd.read_csv(io.StringIO(out))
    assert code == 0
    own = table[table["job"] == "L02.mlp"]
    S = run["L02.mlp"]
    assert own["value"].to_numpy() == pytest.approx(S.values, rel=1e-15)
    assert own["label"].tolist() == S.labels.tolist()
    assert set(own["label"]) <= set(LABELS)
    assert own["token"].tolist() == S.blocks.tolist()


def test_one_form_of_output_at_a_time(runs, capsys, monkeypatch):
    code, _, err = call(capsys, monkeypatch, "show", runs["a"].directory, "--csv", "--json")
    assert code == 2
    assert "give one of" in err
    code, out, _ = call(capsys, monkeypatch, "show", runs["a"].directory, "--explain")
    assert code == 0
    assert "active units a token" in out
