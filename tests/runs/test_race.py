"""Two processes at one directory: real ones, stopped and killed where it matters."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import tightpass as tp

QUESTION = {"tokens": 4, "layers": "0-3"}
COMMAND = [sys.executable, "-m", "tightpass", "run", "--tokens", "4", "--layers", "0-3", "--threads", "1"]


def started(out):
    return subprocess.Popen(
        [*COMMAND, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )


def stopped_in_mid_run(out):
    """A process that has finished a job and not the last, and stands still."""
    process = started(out)
    for _ in range(6000):
        time.sleep(0.01)
        if list(out.glob("records/*.h5")):
            break
    process.send_signal(signal.SIGSTOP)
    return process


def contents(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_the_second_is_refused_and_continues_what_the_first_left_when_it_was_killed(tmp_path):
    out = tmp_path / "a"
    first = stopped_in_mid_run(out)
    try:
        before = contents(out)
        assert not (out / "results.h5").exists()
        with pytest.raises(
            tp.InputError, match=f"another run is writing to {out}; wait for it, or choose another --out"
        ):
            tp.run(out=str(out), **QUESTION)
        assert contents(out) == before
    finally:
        first.kill()
        first.communicate()
    done = {path.name: path.stat().st_mtime_ns for path in out.glob("records/*.h5")}
    again = tp.run(out=str(out), **QUESTION)
    assert again.names == ["L00.mlp", "L01.mlp", "L02.mlp", "L03.mlp"]
    assert 1 <= len(done) <= 3
    assert done.items() <= {path.name: path.stat().st_mtime_ns for path in out.glob("records/*.h5")}.items()
    assert not list(out.rglob("*.part"))
    assert len(tp.verify(out)) == 4


@pytest.mark.slow
def test_of_two_at_once_one_is_done_and_the_other_says_why_not(tmp_path):
    for number in range(3):
        out = tmp_path / str(number)
        both = [started(out) for _ in range(2)]
        said = [process.communicate()[1] for process in both]
        codes = [process.returncode for process in both]
        assert codes in ([0, 0], [0, 2], [2, 0])  # the other comes too late, or too early
        for code, words in zip(codes, said, strict=True):
            assert words == "" if code == 0 else f"another run is writing to {out}" in words
        assert len(tp.verify(out)) == 4
        assert sorted(path.name for path in out.iterdir()) == sorted(
            ["run.yaml", "records", "shards", "results.h5", "journal.jsonl", "ranks.png", "spectra.png", "curves.png"]
        )


@pytest.mark.slow
def test_a_first_that_is_let_go_on_is_done(tmp_path):
    out = tmp_path / "a"
    first = stopped_in_mid_run(out)
    second = started(out)
    assert second.communicate()[0] == ""
    assert second.returncode == 2
    first.send_signal(signal.SIGCONT)
    assert first.communicate()[1] == ""
    assert first.returncode == 0
    assert len(tp.verify(out)) == 4
    alone = tp.run(out=str(tmp_path / "b"), threads=1, **QUESTION)
    for name in alone.names:
        assert np.array_equal(tp.open(out)[name].values, alone[name].values)


@pytest.mark.slow
def test_two_at_once_over_prompts_do_not_share_them_out(tmp_path):
    texts = tmp_path / "texts"
    texts.write_text("The first text is long enough.\nAnd so is the second of them.\n")
    arguments = [*COMMAND, "--prompts", str(texts), "--out", str(tmp_path / "p")]
    both = [subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) in ([0, 0], [0, 2])
    assert all(f"another run is writing to {tmp_path / 'p'};" in words for words in said if words)
    assert len(tp.verify(tmp_path / "p")) == 8
