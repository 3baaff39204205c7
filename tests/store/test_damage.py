"""Files that were edited, cut or half-deleted, and runs that several processes made: said in words, on real files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import call

import tightpass as tp
from tightpass.runs import jobs
from tightpass.runs import made as making
from tightpass.store import journal, records, results
from tightpass.store.shards import Shard

QUESTION = {"tokens": 2, "layers": "1-2"}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return tp.run(out=str(tmp_path_factory.mktemp("damage") / "a"), **QUESTION).directory


@pytest.fixture
def copy(original, tmp_path):
    return shutil.copytree(original, tmp_path / "a")


def edited(text, **changes):
    """JSON with some entries replaced, or taken out where the value is Ellipsis."""
    found = json.loads(text) | changes
    return json.dumps({key: value for key, value in found.items() if value is not ...})


SHARD = {
    "an unknown structure": ("structure", lambda old: "Diagonal", "structure: expected one of"),
    "a structure of another kind": ("structure", lambda old: np.arange(3), "structure: expected one of"),
    "another structure": ("structure", lambda old: "Dense", "2 blocks, expected 4"),
    "no tokens": ("tokens_in", lambda old: 0, "tokens: expected at least 1"),
    "tokens in words": ("tokens_out", lambda old: "two", "damaged"),
    "no JSON": ("evidence", lambda old: old[:-7], "evidence: Invalid JSON"),
    "a number": ("evidence", lambda old: 7, "evidence: expected JSON text"),
    "a list": ("evidence", lambda old: "[]", "evidence: "),
    "no bounds": ("evidence", lambda old: edited(old, bounds=...), "evidence: bounds: Field required"),
    "empty bounds": ("evidence", lambda old: edited(old, bounds=[]), "evidence: bounds: expected at least one"),
    "a word for a number": ("evidence", lambda old: edited(old, energy="much"), "evidence: energy"),
    "a negative energy": ("evidence", lambda old: edited(old, energy=-1.0), "evidence: energy"),
    "half a kink": ("evidence", lambda old: edited(old, kinks=0.5), "evidence: kinks"),
    "an unknown confidence": (
        "evidence",
        lambda old: edited(old, arithmetic=json.loads(old)["arithmetic"] | {"confidence": "sure"}),
        "confidence must be one of certain, 99.9 %",
    ),
    "no bound": (
        "evidence",
        lambda old: edited(old, arithmetic=json.loads(old)["arithmetic"] | {"bound": float("nan")}),
        "expected a bound",
    ),
}


@pytest.mark.parametrize(("name", "change", "words"), SHARD.values(), ids=SHARD)
def test_an_edited_shard_is_refused_in_words(copy, name, change, words):
    path = copy / "shards/L01.mlp.h5"
    with h5py.File(path, "r+") as file:
        file.attrs[name] = change(file.attrs[name])
    for read in (Shard, lambda path: tp.verify(copy)):
        with pytest.raises(tp.VerificationError, match="delete it and run again") as error:
            read(path)
        assert words in str(error.value)
        assert str(path) in str(error.value)
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["structure", "tokens_out", "row_token", "column_token", "x"])
def test_a_shard_that_lacks_something_is_refused_in_words(copy, name):
    path = copy / "shards/L01.mlp.h5"
    with h5py.File(path, "r+") as file:
        del (file.attrs if name in file.attrs else file)[name]
    with pytest.raises(tp.VerificationError, match="delete it and run again"):
        Shard(path)


DETAIL = {
    "no JSON": (lambda old: old[1:], "detail of L01.mlp: Invalid JSON"),
    "no floor": (lambda old: edited(old, floor=...), "floor: Field required"),
    "no parts": (lambda old: edited(old, floor={"parts": [], "conventional": 1.0}), "at least one part"),
    "tokens in words": (lambda old: edited(old, tokens="two"), "tokens: "),
    "no evidence": (lambda old: edited(old, evidence=None), "evidence"),
    "fewer values than there are": (lambda old: edited(old, total=3), "at most 3 of them"),
}


def refused(copy, words, capsys, monkeypatch):
    """Of results.h5, where no records speak for it."""
    path = copy / "results.h5"
    shutil.rmtree(copy / "records")
    for arguments in (["show", copy], ["verify", copy]):
        code, out, err = call(capsys, monkeypatch, *arguments)
        assert (code, out) == (4, "")
        assert words in err
        assert f"{path} " in err
        assert "delete it and run again; all else is kept" in err
        assert len(err.splitlines()) == 1


@pytest.mark.parametrize(("change", "words"), DETAIL.values(), ids=DETAIL)
def test_a_damaged_detail_is_refused_in_words(copy, change, words, capsys, monkeypatch):
    with h5py.File(copy / "results.h5", "r+") as file:
        file["L01.mlp"].attrs["detail"] = change(file["L01.mlp"].attrs["detail"])
    refused(copy, words, capsys, monkeypatch)


PROVENANCE = {
    "deleted": None,
    "no JSON": lambda old: old[:-3],
    "a list": lambda old: "[1]",
    "a number": lambda old: 3,
    "without jobs": lambda old: edited(old, jobs=...),
    "without weights": lambda old: edited(old, weights=...),
}


@pytest.mark.parametrize("change", PROVENANCE.values(), ids=PROVENANCE)
def test_damaged_provenance_is_refused_in_words(copy, change, capsys, monkeypatch):
    with h5py.File(copy / "results.h5", "r+") as file:
        if change is None:
            del file.attrs["provenance"]
        else:
            file.attrs["provenance"] = change(file.attrs["provenance"])
    refused(copy, "damaged (", capsys, monkeypatch)


@pytest.mark.parametrize(
    "name", ["job", "rank_flag", "token_id", "L01.mlp/singular_values", "L01.mlp/label", "L01.mlp/made"]
)
def test_results_that_lack_a_variable_are_refused_in_words(copy, name, capsys, monkeypatch):
    with h5py.File(copy / "results.h5", "r+") as file:
        del file[name]
    refused(copy, f"without {name.rpartition('/')[2]}", capsys, monkeypatch)


def test_damaged_results_are_made_again(copy):
    before = tp.open(copy)["L01.mlp"].values
    with h5py.File(copy / "results.h5", "r+") as file:
        del file.attrs["provenance"]
    (copy / "journal.jsonl").write_bytes(b'5\n[]\n"word"\n\xff\xfe\n{"job": "L02.mlp"}\n')
    again = tp.run(out=str(copy), **QUESTION)
    assert np.array_equal(again["L01.mlp"].values, before)
    assert len(tp.verify(copy)) == 2
    assert next(entry["job"] for entry in journal.read(copy / "journal.jsonl")) == "L02.mlp"


RECORD = {
    "an attribute": lambda file: file.attrs.__setitem__("identity", "0" * 64),
    "a value": lambda file: file["singular_values"].__setitem__(3, file["singular_values"][2]),
    "a vector less": lambda file: file.__delitem__("value_token"),
    "the detail": lambda file: file.attrs.__setitem__("detail", file.attrs["detail"].replace("certain", "assumed")),
    "the provenance": lambda file: file.attrs.__setitem__(
        "provenance", edited(file.attrs["provenance"], model="other")
    ),
    "a token": lambda file: file["token_id"].__setitem__(0, 7),
    "a label": lambda file: file["label"].__setitem__(0, 0),
    "no name": lambda file: file.attrs.__delitem__("name"),
    "another schema": lambda file: file.attrs.__setitem__("record", 99),
}


@pytest.mark.parametrize("change", RECORD.values(), ids=RECORD)
def test_an_edited_record_is_seen_and_made_again(copy, change):
    path, values = copy / "records/L01.mlp.h5", tp.open(copy)["L01.mlp"].values
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(tp.VerificationError, match="run again; all else is kept"):
        records.load(path)
    (copy / "results.h5").unlink()
    assert np.array_equal(tp.run(out=str(copy), **QUESTION)["L01.mlp"].values, values)
    records.load(path)


def test_what_made_a_record_is_not_part_of_its_content(copy):
    path = copy / "records/L01.mlp.h5"
    with h5py.File(path, "r+") as file:
        file["made"].attrs["seconds"] = json.dumps({"spectrum": 1e9})
    assert records.load(path)[0].seconds == {"spectrum": 1e9}


def test_records_are_equal_to_the_bit(copy, tmp_path):
    """But for the group `made`, which is taken out on both sides."""
    again = tp.run(out=str(tmp_path / "again"), **QUESTION).directory
    for name in ("L01.mlp", "L02.mlp"):
        assert (copy / f"shards/{name}.h5").read_bytes() == (again / f"shards/{name}.h5").read_bytes()
        contents = [records.load(where / f"records/{name}.h5")[0] for where in (copy, again)]
        common = [records.load(where / f"records/{name}.h5")[1] for where in (copy, again)]
        hashes = [records.content_hash(*both) for both in zip(contents, common, strict=True)]
        assert hashes[0] == hashes[1]


@pytest.mark.parametrize("lost", [["results.h5"], ["results.h5", "journal.jsonl"], ["records/L01.mlp.h5"]])
def test_a_run_opens_by_whatever_is_left(copy, lost):
    values = tp.open(copy)["L02.mlp"].values
    for name in lost:
        (copy / name).unlink()
    assert tp.open(copy).names == ["L01.mlp", "L02.mlp"]
    assert np.array_equal(tp.open(copy)["L02.mlp"].values, values)


# ---- who made what


def test_a_job_says_what_made_it(original, capsys, monkeypatch):
    for record in tp.open(original).records:
        made = record.made
        assert made["tightpass"] == tp.__version__
        assert made["device"] == "cpu"
        assert {"started", "packages", "python", "platform", "processor", "threads", "kernels"} <= set(made)
        assert sum(record.seconds.values()) > 0
    document = json.loads(call(capsys, monkeypatch, "show", original, "--json")[1])
    assert document["jobs"][0]["made"] == tp.open(original).records[0].made
    assert set(document["jobs"][0]["seconds"]) == set(tp.open(original).records[0].seconds)
    explained = call(capsys, monkeypatch, "show", original, "--explain")[1]
    assert explained.count(f"made by: tightpass {tp.__version__}, torch ") == 2
    assert "Jobs were made by" not in call(capsys, monkeypatch, "show", original)[1]


def test_a_continued_run_credits_each_process(tmp_path, capsys, monkeypatch):
    def stop(name, number, _):
        if number == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as before:
        before.setattr(making, "version", lambda name: "0.0.1" if name == "tightpass" else "1.2.3")
        with pytest.raises(KeyboardInterrupt):
            tp.run(out=str(tmp_path / "a"), progress=stop, threads=1, **QUESTION)
    tp.run(out=str(tmp_path / "a"), threads=2, **QUESTION)
    first, second = tp.open(tmp_path / "a").records
    assert (first.made["tightpass"], second.made["tightpass"]) == ("0.0.1", tp.__version__)
    assert (first.made["threads"], second.made["threads"]) == (1, 2)
    assert first.made["packages"]["torch"] == "1.2.3"
    shown = call(capsys, monkeypatch, "show", tmp_path / "a")[1]
    assert f"Jobs were made by 2 versions: 0.0.1 (L01.mlp), {tp.__version__} (L02.mlp)" in shown
    assert "Jobs were made by 2 numbers of threads: 1 (L01.mlp), 2 (L02.mlp)" in shown
    assert "2 versions of torch: 1.2.3 (L01.mlp)" in shown


def test_a_jacobian_that_was_there_already_is_not_claimed(copy):
    (copy / "results.h5").unlink()
    shutil.rmtree(copy / "records")
    assert all("was there already" in record.made["jacobian"] for record in tp.run(out=str(copy), **QUESTION).records)


BEFORE = Path(__file__).parents[1] / "data" / "before"
"""A run of two jobs as it was stored when all jobs shared one array (schema 2), without its shards."""


@pytest.fixture
def before(tmp_path):
    return shutil.copytree(BEFORE, tmp_path / "before")


def test_files_of_before_still_load(before, capsys, monkeypatch):
    opened = tp.open(before)
    assert opened.names == ["L00.mlp", "L01.mlp"]
    assert opened["L01.mlp"].rank.interval == (114, 114)
    assert len(opened["L00.mlp"].values) == 512
    assert opened.records[0].made["packages"]["torch"]
    assert "made by: tightpass 0.1.0" in call(capsys, monkeypatch, "show", before, "--explain")[1]
    assert not tp.compare(before, before).different


def test_still_older_files_load(before, capsys, monkeypatch):
    """Without `made`, parts without `chance`, floors summed to nearest, and the last process in the run's provenance."""
    with h5py.File(before / "results.h5", "r+") as file:
        made = json.loads(file["detail"].asstr()[0])["made"]
        for i, text in enumerate(file["detail"].asstr()[:]):
            detail = json.loads(text)
            del detail["made"]
            for part in (*detail["floor"]["parts"], detail["evidence"]["arithmetic"]):
                del part["chance"]
            file["detail"][i] = json.dumps(detail)
            file["floor"][i] = sum(part["bound"] for part in detail["floor"]["parts"])
        file.attrs["provenance"] = edited(file.attrs["provenance"], tightpass="0.0.9", threads=made["threads"])
        del file["rank_confidence"]
    record = tp.open(before).records[0]
    assert record.made == {"tightpass": "0.0.9", "threads": made["threads"]}
    for record in tp.open(before).records:
        results.check_derived(before / "results.h5", record.spectrum)
    assert "made by: tightpass 0.0.9" in call(capsys, monkeypatch, "show", before, "--explain")[1]


@pytest.mark.parametrize("name", ["job", "singular_values", "rank_flag", "detail", "token_id", "identity"])
def test_files_of_before_that_lack_a_variable_are_refused_in_words(before, name):
    with h5py.File(before / "results.h5", "r+") as file:
        del file[name]
    with pytest.raises(tp.VerificationError, match=name):
        tp.open(before)


def test_a_run_of_before_is_continued(before, monkeypatch):
    """Its records get files of their own, and its Jacobians, which are not there, are made again."""
    monkeypatch.setattr(jobs, "ALGORITHM", 6)
    stored = tp.open(before)
    again = tp.run(tokens=4, layers="0-1", out=str(before))
    for name in stored.names:
        assert np.allclose(again[name].values, stored[name].values, rtol=0, atol=stored[name].floor.total)
    assert sorted(path.name for path in (before / "records").iterdir()) == ["L00.mlp.h5", "L01.mlp.h5"]
    assert len(tp.verify(before)) == 2


@pytest.mark.parametrize("seed", range(12))
def test_flipped_bytes_are_never_a_traceback(copy, seed, capsys, monkeypatch):
    path = copy / "results.h5"
    content, rng = bytearray(path.read_bytes()), np.random.default_rng(seed)
    start = int(rng.integers(len(content) - 8))
    for i in range(start, start + 8):
        content[i] ^= int(rng.integers(1, 256))
    path.write_bytes(content)
    for command in ("show", "verify"):
        code, _, err = call(capsys, monkeypatch, command, copy)
        assert code in (0, 4)
        assert "Traceback" not in err
        assert (code == 0) or "results.h5" in err or "shard" in err or copy.name in err


VALUES = {
    "negative": ("singular_values", lambda old: -old, "none negative"),
    "not sorted": ("singular_values", lambda old: old[::-1], "from the largest down"),
    "not a number": ("singular_values", lambda old: old * np.nan, "expected finite ones"),
    "tokens that are not there": (
        "value_token",
        lambda old: old + 65_530,
        "value_token of L01.mlp: expected tokens 0..1",
    ),
}


@pytest.mark.parametrize(("name", "change", "words"), VALUES.values(), ids=VALUES)
def test_values_that_no_run_gives_are_refused(copy, name, change, words, capsys, monkeypatch):
    with h5py.File(copy / "results.h5", "a") as file:
        file[f"L01.mlp/{name}"][...] = change(file[f"L01.mlp/{name}"][...])
    shutil.rmtree(copy / "records")
    code, _, err = call(capsys, monkeypatch, "show", copy)
    assert code == 4
    assert words in err
