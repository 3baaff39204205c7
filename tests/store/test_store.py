"""Shards, results, resuming: the protocol on a real file system."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
import xarray as xr
from commands import call

import tightpass as tp
from tightpass.store import journal, records, results
from tightpass.store.shards import Shard

QUESTION = {"block": "mlp", "tokens": 6, "layers": "1-2"}


@pytest.fixture
def finished(tmp_path):
    return tp.run(out=str(tmp_path / "a"), **QUESTION)


def files(directory):
    return {
        p.relative_to(directory).as_posix(): (p.stat().st_mtime_ns, p.read_bytes())
        for p in directory.rglob("*")
        if p.is_file()
    }


def test_a_run_directory_holds_what_the_design_says(finished):
    assert sorted(files(finished.directory)) == [
        "curves.png",
        "journal.jsonl",
        "ranks.png",
        "records/L01.mlp.h5",
        "records/L02.mlp.h5",
        "results.h5",
        "run.yaml",
        "shards/L01.mlp.h5",
        "shards/L02.mlp.h5",
        "spectra.png",
    ]
    assert finished.names == ["L01.mlp", "L02.mlp"]
    assert [entry["job"] for entry in journal.read(finished.directory / "journal.jsonl")] == finished.names


def test_reopened_equals_computed(finished):
    again = tp.open(finished.directory)
    model = tp.load_model("demo")
    for name, layer in (("L01.mlp", 1), ("L02.mlp", 2)):
        S = tp.spectrum(tp.jacobian(tp.block(model, "mlp", layer=layer, tokens=6)))
        assert np.array_equal(again[name].values, S.values)
        assert again[name].floor == S.floor
        assert again[name].rank == S.rank
        assert again[name].evidence == S.evidence
    assert again.table().equals(finished.table())
    with pytest.raises(tp.InputError, match=r"no job 'L09.mlp'; it has L01.mlp, L02.mlp"):
        again["L09.mlp"]


def test_xarray_reads_results_and_shards(finished):
    with xr.open_dataset(finished.directory / "results.h5", engine="h5netcdf") as results:
        assert results.sel(job="L02.mlp")["rank_low"] == finished["L02.mlp"].rank.lo
        assert results["rank_flag"].values.tolist() == [finished[name].rank.flag for name in finished.names]
    for path, group in (("results.h5", "L02.mlp"), ("records/L02.mlp.h5", None)):
        with xr.open_dataset(finished.directory / path, engine="h5netcdf", group=group) as job:
            assert job["singular_values"].dims == ("index",)
            assert np.array_equal(job["singular_values"].values, finished["L02.mlp"].values)
            assert job["label"].attrs["flag_meanings"] == "noise doubtful signal"
    with xr.open_dataset(finished.directory / "shards/L01.mlp.h5", engine="h5netcdf") as shard:
        assert shard["jacobian"].dims == ("block", "output", "input")
        block = tp.block(tp.load_model("demo"), "mlp", layer=1, tokens=6)
        assert np.array_equal(shard["x"].values, block.x.numpy())
        J = tp.jacobian(block).dense().reshape(6, 128, 6, 128)
        for i, (t, s) in enumerate(zip(shard["row_token"].values, shard["column_token"].values, strict=True)):
            assert np.array_equal(shard["jacobian"].values[i], J[t, :, s].numpy())


def test_the_same_question_repeats_nothing(finished):
    before = files(finished.directory)
    again = tp.run(out=str(finished.directory), **QUESTION)
    after = files(finished.directory)
    assert again.names == finished.names
    for name in before:
        if not name.endswith((".png", "run.yaml")):
            assert before[name] == after[name], name


@pytest.mark.parametrize(
    "lost", ["results.h5", "records/L02.mlp.h5", "shards/L02.mlp.h5", "journal.jsonl", "all but shards"]
)
def test_an_unfinished_run_is_continued(finished, lost):
    directory = finished.directory
    before = files(directory)
    for name in [*before] if lost == "all but shards" else [lost]:
        if not (lost == "all but shards" and name.startswith(("shards", "run.yaml"))):
            (directory / name).unlink()
    (directory / "shards/L01.mlp.h5.abc.part").write_bytes(b"left by a killed writer")
    again = tp.run(out=str(directory), **QUESTION)
    after = files(directory)
    assert again.names == finished.names
    assert np.array_equal(again["L02.mlp"].values, finished["L02.mlp"].values)
    assert before["shards/L01.mlp.h5"] == after["shards/L01.mlp.h5"]  # a published shard never changes
    assert [again[n].rank for n in again.names] == [finished[n].rank for n in finished.names]


def test_interrupted_between_jobs_it_continues_with_the_second(tmp_path):
    def stop(name, number, _):
        if number == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tp.run(out=str(tmp_path / "a"), progress=stop, **QUESTION)
    assert tp.open(tmp_path / "a").names == ["L01.mlp"]
    first = (tmp_path / "a/shards/L01.mlp.h5").stat().st_mtime_ns
    assert tp.run(out=str(tmp_path / "a"), **QUESTION).names == ["L01.mlp", "L02.mlp"]
    assert (tmp_path / "a/shards/L01.mlp.h5").stat().st_mtime_ns == first


def test_a_failed_job_leaves_no_part_behind(tmp_path, monkeypatch):
    import sys

    def failing(*_):
        raise RuntimeError("disk on fire")

    monkeypatch.setattr(sys.modules["tightpass.store.shards"].ShardWriter, "write", failing)
    with pytest.raises(RuntimeError, match="disk on fire"):
        tp.run(out=str(tmp_path / "a"), **QUESTION)
    assert list((tmp_path / "a/shards").iterdir()) == []


def test_another_question_in_the_same_directory_is_refused(finished):
    for change in (
        {"tokens": 7},
        {"layers": "1"},
        {"block": "attn"},
        {"dtype": "float32"},
        {"text": "Something else entirely " * 9},
    ):
        before = files(finished.directory)
        with pytest.raises(tp.InputError, match="another question"):
            tp.run(out=str(finished.directory), **QUESTION | change)
        assert files(finished.directory) == before
    tp.run(out=str(finished.directory), threads=1, memory="3GiB", **QUESTION)  # the same question elsewhere


def test_changed_weights_under_the_same_name_are_refused(tmp_path, small_opt):
    import copy

    import torch

    hf = copy.deepcopy(small_opt)
    question = {"block": "mlp", "tokens": 4, "out": str(tmp_path / "a")}
    tp.run(hf, **question)
    with torch.no_grad():
        hf.decoder.layers[2].fc1.weight[0, 0] += 1
    for lost in (None, "results.h5", "records"):
        if lost == "records":
            shutil.rmtree(tmp_path / "a" / lost)
        elif lost:
            (tmp_path / "a" / lost).unlink()
        with pytest.raises(tp.InputError, match="other weights"):
            tp.run(hf, **question)


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("do not touch")
    with pytest.raises(tp.InputError, match="holds no run"):
        tp.run(out=str(tmp_path), **QUESTION)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_verify_finds_a_flipped_byte_and_a_lost_shard(finished):
    lines = tp.verify(finished.directory)
    assert len(lines) == 2
    path = finished.directory / "shards/L02.mlp.h5"
    flip(path, 3)
    with pytest.raises(tp.VerificationError, match="damaged"):
        tp.verify(finished.directory)
    path.unlink()
    with pytest.raises(tp.VerificationError, match="is missing"):
        tp.verify(finished.directory)


def flip(path, number):
    """One byte of a chunk of a shard."""
    with h5py.File(path) as file:
        offset = file["jacobian"].id.get_chunk_info(number).byte_offset
    data = bytearray(path.read_bytes())
    data[offset + 1000] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("record", [False, True])
def test_verify_names_every_damaged_file(tmp_path, record, capsys, monkeypatch):
    """Also where a record is, so that the others can no longer be compared with it."""
    directory = tp.run(**QUESTION | {"layers": "0-3"}, out=str(tmp_path / "a")).directory
    damaged = ["shards/L00.mlp.h5", "shards/L02.mlp.h5", "results.h5"]
    for name in damaged[:2]:
        flip(directory / name, 3)
    with h5py.File(directory / "results.h5", "r+") as file:
        file["L01.mlp/singular_values"][0] *= 1.0001
    if record:
        damaged.append("records/L03.mlp.h5")
        (directory / "records/L03.mlp.h5").write_bytes(b"")
    else:
        damaged.append("shards/L01.mlp.h5")
        (directory / "shards/L01.mlp.h5").unlink()
    code, out, err = call(capsys, monkeypatch, "verify", directory)
    assert (code, out) == (4, "")
    lines = err.removeprefix("error: ").splitlines()
    assert len(lines) == 4
    for name in damaged:
        assert sum(f"{directory / name}" in line for line in lines) == 1
    with pytest.raises(tp.VerificationError) as error:
        tp.verify(directory)
    assert str(error.value).splitlines() == lines


def test_verify_names_the_damaged_files_of_all_prompts(tmp_path):
    prompts = ["The first of three prompts is this.", "This is the second one.", "And this is the third of them."]
    directory = tp.run(**QUESTION, prompts=prompts, out=str(tmp_path / "p")).directory
    damaged = [directory / f"prompts/{number}/shards/L02.mlp.h5" for number in ("001", "003")]
    for path in damaged:
        flip(path, 0)
    with pytest.raises(tp.VerificationError) as error:
        tp.verify(directory)
    first, second = str(error.value).splitlines()
    assert str(damaged[0]) in first
    assert str(damaged[1]) in second


def test_verify_finds_a_changed_spectrum(finished):
    with h5py.File(finished.directory / "results.h5", "r+") as file:
        file["L01.mlp/singular_values"][0] *= 1.0001
    assert tp.open(finished.directory)["L01.mlp"].values[0] == finished["L01.mlp"].values[0]  # the record's
    with pytest.raises(tp.VerificationError, match=r"content of L01.mlp is not what was written.*run again"):
        tp.verify(finished.directory)


def forge(directory, name, **changes):
    """Another spectrum in a job's record and in results.h5, as whoever knows their hashes would write it."""
    opened = tp.open(directory)
    common = records.Common(opened.provenance, list(opened.token_ids))
    forged = [
        replace(r, spectrum=replace(r.spectrum, **changes)) if r.spectrum.name == name else r for r in opened.records
    ]
    for record in forged:
        records.save(directory / f"records/{record.spectrum.name}.h5", record, common)
    results.save(directory / "results.h5", forged, common)


def test_verify_finds_a_forged_spectrum(finished):
    values = finished["L01.mlp"].values.copy()
    values[0] *= 1.0001
    forge(finished.directory, "L01.mlp", values=values)
    with pytest.raises(tp.VerificationError, match="Σσ²"):
        tp.verify(finished.directory)


def test_verify_finds_forged_evidence(finished):
    evidence = replace(finished["L01.mlp"].evidence, kinks=finished["L01.mlp"].evidence.kinks + 1)
    forge(finished.directory, "L01.mlp", evidence=evidence)
    with pytest.raises(tp.VerificationError, match="has other evidence than the record"):
        tp.verify(finished.directory)


def smaller_floor(spectrum):
    parts = tuple(replace(part, bound=part.bound * 1e-6) for part in spectrum.floor.parts)
    return replace(spectrum.floor, parts=parts)


def test_the_record_is_the_truth(finished):
    """results.h5 with a floor that is too small, and whole in itself, beside the records: it is not believed, and made again."""
    directory, opened = finished.directory, finished
    common = records.Common(opened.provenance, list(opened.token_ids))
    forged = [replace(r, spectrum=replace(r.spectrum, floor=smaller_floor(r.spectrum))) for r in opened.records]
    results.save(directory / "results.h5", forged, common)
    assert tp.open(directory)["L01.mlp"].floor == opened["L01.mlp"].floor
    with pytest.raises(tp.VerificationError, match=r"says otherwise of L01.mlp than its record; delete it"):
        tp.verify(directory)
    tp.run(out=str(directory), **QUESTION)
    assert results.load(directory / "results.h5")[0][0].spectrum.floor == opened["L01.mlp"].floor
    assert len(tp.verify(directory)) == 2


def test_verify_does_without_results(finished):
    (finished.directory / "results.h5").unlink()
    assert len(tp.verify(finished.directory)) == 2


def test_verify_takes_results_that_lack_a_job(finished):
    """As they are where a continued run was killed before it gathered."""
    common = records.Common(finished.provenance, list(finished.token_ids))
    results.save(finished.directory / "results.h5", list(finished.records[:1]), common)
    assert tp.open(finished.directory).names == ["L01.mlp", "L02.mlp"]
    assert len(tp.verify(finished.directory)) == 2
    tp.run(out=str(finished.directory), **QUESTION)
    assert len(results.load(finished.directory / "results.h5")[0]) == 2


def test_damaged_records_do_not_verify(finished):
    path = finished.directory / "records/L02.mlp.h5"
    path.write_bytes(path.read_bytes()[:300])
    for read in (tp.open, tp.verify):
        with pytest.raises(tp.VerificationError, match=r"L02.mlp.h5 is damaged .*run again"):
            read(finished.directory)
    tp.run(out=str(finished.directory), **QUESTION)
    assert len(tp.verify(finished.directory)) == 2


def test_files_of_two_runs_are_not_mixed(finished, tmp_path):
    other = tp.run(out=str(tmp_path / "b"), **QUESTION | {"text": "Something else entirely " * 9}).directory
    mine = finished.directory
    kept = (mine / "records/L02.mlp.h5").read_bytes()
    (mine / "records/L02.mlp.h5").write_bytes((other / "records/L02.mlp.h5").read_bytes())
    with pytest.raises(tp.VerificationError, match="are of two runs"):
        tp.open(mine)
    (mine / "records/L02.mlp.h5").write_bytes((mine / "records/L01.mlp.h5").read_bytes())
    with pytest.raises(tp.VerificationError, match=r"L02.mlp.h5 holds the record of L01.mlp"):
        tp.open(mine)
    (mine / "records/L02.mlp.h5").unlink()
    (mine / "results.h5").write_bytes((other / "results.h5").read_bytes())
    with pytest.raises(tp.VerificationError, match="are of two runs"):
        tp.open(mine)
    (mine / "records/L02.mlp.h5").write_bytes(kept)
    assert tp.open(mine).names == finished.names  # by the records alone
    with pytest.raises(tp.VerificationError, match="says otherwise of L01"):
        tp.verify(mine)


@pytest.mark.parametrize(("option", "value"), [("block", "attn"), ("dtype", "float32"), ("tokens", 7)])
def test_records_that_answer_another_question_are_refused(finished, option, value):
    path = finished.directory / "run.yaml"
    lines = [f"{option}: {value}" if line.startswith(f"{option}:") else line for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(tp.VerificationError, match=f"asks for {option} {value}, the records beside it have"):
        tp.open(finished.directory)


def test_the_shard_of_another_job_is_not_handed_out(finished):
    path = finished.directory / "shards/L01.mlp.h5"
    with h5py.File(path, "r+") as file:
        file.attrs["identity"] = "0" * 64
    for read in (lambda: finished.shard("L01.mlp"), lambda: tp.verify(finished.directory)):
        with pytest.raises(tp.VerificationError, match="belongs to another computation"):
            read()


def test_a_writer_killed_at_the_question_locks_nobody_out(tmp_path):
    (tmp_path / "run.yaml.0123456789ab.part").write_text("model: de")
    run = tp.run(out=str(tmp_path), **QUESTION)
    assert not list(run.directory.rglob("*.part"))


def test_abandoned_parts_are_removed_everywhere(finished):
    for folder in (".", "records", "shards"):
        (finished.directory / folder / "L01.mlp.h5.0123456789ab.part").write_bytes(b"left")
    tp.run(out=str(finished.directory), **QUESTION)
    assert not list(finished.directory.rglob("*.part"))


def test_files_are_read_back_before_they_get_their_names(finished, monkeypatch):
    """What cannot be read is not published, and nothing is left."""

    def garbled(group, name, values, *rest, **attributes):
        put(group, name, -values if name == "singular_values" else values, *rest, **attributes)

    put = records.put
    monkeypatch.setattr(records, "put", garbled)
    common = records.Common(finished.provenance, list(finished.token_ids))
    for path, save in (
        (finished.directory / "records/L01.mlp.h5", lambda p: records.save(p, finished.records[0], common)),
        (finished.directory / "results.h5", lambda p: results.save(p, list(finished.records), common)),
    ):
        before = path.read_bytes()
        with pytest.raises(tp.VerificationError, match="damaged"):
            save(path)
        assert path.read_bytes() == before
    assert not list(finished.directory.rglob("*.part"))


@pytest.mark.parametrize("changed", ["name", "identity", "floor", "values", "dtype", "tokens", "provenance", "vectors"])
def test_the_hash_is_of_all_that_is_said(finished, changed):
    record, common = finished.records[0], records.Common(finished.provenance, list(finished.token_ids))
    s = record.spectrum
    other = {
        "name": replace(record, spectrum=replace(s, name="L02.mlp")),
        "identity": replace(record, identity="0" * 64),
        "floor": replace(record, spectrum=replace(s, floor=smaller_floor(s))),
        "values": replace(record, spectrum=replace(s, values=s.values * (1 + 1e-15))),
        "dtype": replace(record, spectrum=replace(s, values=np.zeros(4), blocks=None)),
        "vectors": replace(record, spectrum=replace(s, U=np.ones((2, 3)))),
    }.get(changed, record)
    first = (
        replace(record, spectrum=replace(s, values=np.zeros(8, np.float32), blocks=None))
        if changed == "dtype"
        else record
    )
    own = {
        "tokens": records.Common(common.provenance, [1, *common.token_ids[1:]]),
        "provenance": records.Common(common.provenance | {"weights": "others"}, common.token_ids),
    }.get(changed, common)
    assert records.content_hash(first, common) != records.content_hash(other, own)
    made = replace(record, made={}, seconds={})
    assert records.content_hash(record, common) == records.content_hash(made, common)


@pytest.mark.parametrize("name", ["label", "rank_low", "rank_high", "floor"])
def test_verify_finds_a_changed_verdict(finished, name):
    with h5py.File(finished.directory / "results.h5", "r+") as file:
        where = file["L01.mlp"] if name == "label" else file
        where[name][0] = where[name][0] * 0
    with pytest.raises(tp.VerificationError, match="do not follow"):
        tp.verify(finished.directory)


def test_verify_finds_a_tail_that_is_not_the_jacobians(finished):
    """The change is far below the rounding of Σσ², and moves no label."""
    S = finished["L01.mlp"]
    row, i = S.values.copy(), S.rank.lo
    row[i - 1] *= 0.9
    row[0] = np.sqrt(row[0] ** 2 + S.values[i - 1] ** 2 - row[i - 1] ** 2)
    forge(finished.directory, "L01.mlp", values=row)
    with pytest.raises(tp.VerificationError, match="differ by"):
        tp.verify(finished.directory)


def test_an_unfinished_run_does_not_verify(tmp_path):
    def stop(name, number, _):
        if number == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tp.run(out=str(tmp_path / "a"), progress=stop, **QUESTION)
    assert tp.open(tmp_path / "a").unfinished == ["L02.mlp"]
    with pytest.raises(tp.VerificationError, match="1 of 2 jobs are done"):
        tp.verify(tmp_path / "a")


@pytest.mark.parametrize("damage", [b"", b"\x89HDF torn", None])
def test_damaged_results_are_filled_again_from_shards(finished, damage):
    path = finished.directory / "results.h5"
    if damage is None:
        with h5py.File(path, "w") as file:
            file["something"] = 1
    else:
        path.write_bytes(damage)
    assert tp.open(finished.directory).names == finished.names  # by the records
    shutil.rmtree(finished.directory / "records")
    with pytest.raises(tp.VerificationError, match="run again; all else is kept"):
        tp.open(finished.directory)
    again = tp.run(out=str(finished.directory), **QUESTION)
    assert np.array_equal(again["L01.mlp"].values, finished["L01.mlp"].values)


def test_two_runs_at_once_in_one_directory_are_refused(finished):
    from tightpass.store.lock import exclusive

    with exclusive(finished.directory), pytest.raises(tp.InputError, match="another run is writing"):
        tp.run(out=str(finished.directory), **QUESTION)
    tp.run(out=str(finished.directory), **QUESTION)


def test_a_shard_is_synced_and_checked_before_it_gets_its_name(tmp_path, monkeypatch):
    import sys

    publish, shards = sys.modules["tightpass.store.publish"], sys.modules["tightpass.store.shards"]
    steps = []
    for owner, name in ((publish, "sync"), (publish.os, "replace"), (shards.Shard, "check")):
        original = getattr(owner, name)

        def recorded(*args, original=original, name=name):
            target = args[0] if name != "check" else args[0].path
            steps.append(
                (name, "part" if str(target).endswith(".part") else "directory" if target.is_dir() else "shard")
            )
            return original(*args)

        monkeypatch.setattr(owner, name, recorded)
    tp.run(out=str(tmp_path / "a"), block="mlp", tokens=2, layers="0")
    first = steps.index(("check", "part")) - 1
    assert steps[first : first + 4] == [
        ("sync", "part"),
        ("check", "part"),
        ("replace", "part"),
        ("sync", "directory"),
    ]


def test_a_later_schema_is_refused_by_name(finished):
    path = finished.directory / "shards/L01.mlp.h5"
    with h5py.File(path, "r+") as file:
        file.attrs["schema"] = 99
    with pytest.raises(tp.InputError, match="schema 99, this version reads 1"):
        Shard(path)


def test_discarded_jacobians_leave_the_same_spectra(finished, tmp_path):
    light = tp.run(out=str(tmp_path / "b"), discard_jacobian=True, **QUESTION)
    assert list((light.directory / "shards").iterdir()) == []
    for name in finished.names:
        assert np.array_equal(light[name].values, finished[name].values)
    assert all("discarded" in line for line in tp.verify(light.directory))
    stamp = (light.directory / "results.h5").stat().st_mtime_ns
    tp.run(out=str(tmp_path / "b"), discard_jacobian=True, **QUESTION)
    assert (light.directory / "results.h5").stat().st_mtime_ns == stamp
    with pytest.raises(tp.InputError, match="was not kept"):
        light.shard("L01.mlp")


def test_vectors_are_kept_and_satisfy_their_definition(tmp_path):
    run = tp.run(out=str(tmp_path / "v"), vectors=3, block="attn", tokens=3, layers="4")
    S = tp.open(run.directory)["L04.attn"]
    J = tp.jacobian(tp.block(tp.load_model("demo"), "attn", layer=4, tokens=3)).dense().numpy()
    assert S.U.shape == (384, 3)
    assert np.abs(J @ S.Vh.T - S.U * S.values[:3]).max() <= 1e-12 * S.values[0]
    assert np.all(S.residuals <= 1e-10 * S.values[0])


def test_identity_depends_on_the_numbers_and_not_on_the_place(finished, tmp_path):
    other = tp.run(out=str(tmp_path / "elsewhere"), threads=1, **QUESTION)
    assert [r.identity for r in other.records] == [r.identity for r in finished.records]
    changes = [
        {"dtype": "float32"},
        {"tokens": 7},
        {"norm": False},
        {"residual": True},
        {"vectors": 1},
        {"special": False},
    ]
    seen = {r.identity for r in finished.records}
    for number, change in enumerate([*changes, {"block": "attn"}]):
        run = tp.run(out=str(tmp_path / str(number)), **QUESTION | {"layers": "1"} | change)
        identity = run.records[0].identity
        assert identity not in seen
        seen.add(identity)


def test_run_yaml_replays_the_run(finished, tmp_path):
    config = tp.Config.read(str(finished.directory / "run.yaml"), out=str(tmp_path / "again"))
    options = config.model_dump()
    again = tp.run(**options)
    assert np.array_equal(again["L01.mlp"].values, finished["L01.mlp"].values)


def test_a_torn_journal_line_is_passed_over(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal.append(path, job="a")
    with path.open("a") as file:
        file.write(json.dumps({"job": "b"})[:-3])
    assert [entry["job"] for entry in journal.read(path)] == ["a"]
    assert os.path.getsize(path) > 0
