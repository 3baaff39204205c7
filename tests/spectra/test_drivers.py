"""The choice of a driver: timed once, kept in a file that may be anything."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tightpass.spectra import drivers
from tightpass.spectra.lapack import triplets

ANSWER = np.zeros(1)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch, tmp_path):
    monkeypatch.setattr(drivers, "CHOICES", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def slow(A):
    sum(range(200000))
    return ANSWER


def quick(A):
    return ANSWER


def broken(A):
    raise RuntimeError("too large\nfor this driver")


def diverging(A):
    raise np.linalg.LinAlgError("devInfo = 7")


CANDIDATES = [("broken", broken), ("slow", slow), ("quick", quick), ("diverging", diverging)]


def test_it_is_timed_once_and_failing_ones_are_left_out(monkeypatch, capsys):
    made = []
    for _ in range(3):
        assert drivers.fastest("a gpu", CANDIDATES, lambda: made.append(1)) == "quick"
    assert made == [1]
    assert capsys.readouterr().err == "broken is left out: too large\ndiverging is left out: devInfo = 7\n"
    monkeypatch.setattr(drivers, "CHOICES", {})
    assert drivers.fastest("a gpu", CANDIDATES, lambda: pytest.fail("timed again")) == "quick"
    assert drivers.fastest("another gpu", [("broken", broken)], lambda: None) == "broken"
    assert len(drivers.stored()) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"a gpu": 7}'])
def test_a_file_that_is_none_of_ours_is_written_anew(content):
    drivers.place().parent.mkdir(parents=True)
    drivers.place().write_bytes(content)
    assert drivers.fastest("a gpu", CANDIDATES, lambda: None) == "quick"
    assert "quick" in json.loads(drivers.place().read_text()).values()


def test_a_driver_that_is_no_longer_known_is_not_taken(monkeypatch):
    drivers.fastest("a gpu", CANDIDATES, lambda: None)
    (key,) = drivers.CHOICES
    drivers.remembered(key, "of long ago")
    monkeypatch.setattr(drivers, "CHOICES", {})
    assert drivers.fastest("a gpu", CANDIDATES, lambda: None) == "quick"


def test_triplets_where_divide_and_conquer_gives_up(monkeypatch):
    A = np.random.default_rng(0).standard_normal((7, 4))
    right = triplets(A)

    def failing(*args, **kwargs):
        raise torch._C._LinAlgError("linalg.svd: the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "svd", failing)
    for U, s, Vh in (right, triplets(A)):
        assert np.abs(U * s @ Vh - A).max() < 1e-14
        assert (U.shape, s.shape, Vh.shape) == ((7, 4), (4,), (4, 4))


def test_nowhere_to_write_costs_nothing(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert drivers.fastest("a gpu", CANDIDATES, lambda: None) == "quick"
