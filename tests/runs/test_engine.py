"""A job is plain data, and done anywhere it publishes the same; a question is resolved once."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import tightpass as tp
from tightpass.models.capture import capture
from tightpass.models.tokens import tokenize
from tightpass.runs import check, jobs, start
from tightpass.runs.engine import Workplace, do
from tightpass.runs.executors.serial import serial
from tightpass.runs.jobs import Job, blocks_of, identity_of
from tightpass.runs.question import Config
from tightpass.store import records
from tightpass.store.shards import Shard

EXECUTORS = {"serial": serial}
"""Every executor, by its name: a map of `do` over jobs."""


@pytest.fixture(scope="module")
def model():
    return tp.load_model("demo")


def listed(model, tokens, **options):
    config = Config.of(tokens=tokens, **options)
    found = tokenize(model, tokens)
    ids, weights = tuple(found.ids.tolist()), model.weights_hash()
    blocks = blocks_of(config, model.shape)
    names = tuple(block.name for block in blocks)
    made = [Job(config, b, names, identity_of(config, b, weights, ids), weights, ids, 2**32) for b in blocks]
    return made, capture(model, found.ids), found


QUESTIONS = [
    {"layers": "1-2"},
    {"block": "attn", "layers": "3", "vectors": 2},
    {"block": "attn", "layers": "2", "method": "topk", "k": 5},
]


@pytest.mark.parametrize("question", QUESTIONS)
def test_jobs_are_small_plain_data(model, question):
    for job in listed(model, 3, **question)[0]:
        assert pickle.loads(pickle.dumps(job)) == job
        assert len(pickle.dumps(job)) < 3000


@pytest.mark.parametrize("executor", EXECUTORS.values(), ids=EXECUTORS)
@pytest.mark.parametrize("question", QUESTIONS)
def test_a_job_does_the_same_anywhere(model, question, executor, tmp_path):
    todo, captured, tokens = listed(model, 3, **question)
    places = [Workplace(tmp_path / name, captured, tokens) for name in ("here", "there")]
    for place in places:
        done = list(executor(lambda job, place=place: do(pickle.loads(pickle.dumps(job)), place), todo))
        assert done == todo
    for job in todo:
        (first, common), (second, again) = (records.load(p.directory / f"records/{job.name}.h5") for p in places)
        assert records.content_hash(first, common) == records.content_hash(second, again)
        assert first.identity == job.identity
        assert common.token_ids == list(job.token_ids)
        shards = [place.directory / f"shards/{job.name}.h5" for place in places]
        if question.get("method") == "topk":
            assert not any(path.exists() for path in shards)
        else:
            assert shards[0].read_bytes() == shards[1].read_bytes()
            assert Shard(shards[0]).identity == job.identity


def test_two_writers_of_one_job_leave_one_whole_record(model, tmp_path):
    """As when a task is run again elsewhere while its first copy still runs: no lock decides what is true."""
    todo, captured, tokens = listed(model, 2, layers="1")
    place = Workplace(tmp_path, captured, tokens)
    first, again = do(todo[0], place), do(todo[0], place)
    assert np.array_equal(first.spectrum.values, again.spectrum.values)
    assert sorted(p.name for p in tmp_path.rglob("*.h5")) == ["L01.mlp.h5", "L01.mlp.h5"]
    assert not list(tmp_path.rglob("*.part"))
    assert records.load(tmp_path / "records/L01.mlp.h5")[0].identity == todo[0].identity


@pytest.mark.parametrize("block", ["mlp", "attn"])
def test_a_question_is_resolved_once(tmp_path, monkeypatch, block):
    calls: list[str] = []

    def counted(place, name):
        original = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *a, **k: (calls.append(name), original(*a, **k))[1])

    for place, name in ((check, "locate"), (check, "memory_limit"), (check, "planned_shape"), (start, "loaded")):
        counted(place, name)
    tp.run(block=block, tokens=2, layers="1", out=str(tmp_path / "a"))
    assert sorted(calls) == ["loaded", "locate", "memory_limit", "planned_shape"]


def test_the_identity_is_of_all_that_defines_the_numbers(model):
    base = listed(model, 3, layers="1")[0][0]
    others = [
        listed(model, 4, layers="1")[0][0],
        listed(model, 3, layers="2")[0][0],
        listed(model, 3, layers="1", block="attn")[0][0],
        *listed(model, 3, layers="1", block="head")[0][:2],
        listed(model, 3, layers="1", norm=False)[0][0],
        listed(model, 3, layers="1", residual=True)[0][0],
        listed(model, 3, layers="1", dtype="float32")[0][0],
        listed(model, 3, layers="1", vectors=1)[0][0],
        listed(model, 3, layers="1", method="topk")[0][0],
        listed(model, 3, layers="1", method="topk", k=3)[0][0],
    ]
    assert len({job.identity for job in (base, *others)}) == 1 + len(others)
    for same in ({"threads": 1}, {"memory": "3GiB"}, {"out": "elsewhere"}, {"discard_jacobian": True}):
        assert listed(model, 3, layers="1", **same)[0][0].identity == base.identity


def test_another_algorithm_is_another_identity(model, monkeypatch):
    base = listed(model, 3, layers="1")[0][0]
    monkeypatch.setattr(jobs, "ALGORITHM", jobs.ALGORITHM + 1)
    assert listed(model, 3, layers="1")[0][0].identity != base.identity
