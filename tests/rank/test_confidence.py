"""How surely a floor holds stands beside every flag."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import matplotlib.image
import numpy as np
import pytest
import torch
from commands import call

import tightpass as tp
from tightpass.confidence import CONFIDENCE, weakest
from tightpass.evidence.judge import svd_part
from tightpass.rank.floor import Floor
from tightpass.rank.records import Part
from tightpass.rank.spectrum import Spectrum
from tightpass.report import frames, lines, plots, table
from tightpass.spectra.verify import SvdError


def floor_of(*confidences, chance=0.0):
    return Floor(tuple(Part(str(i), 1e-9, "given", word, chance) for i, word in enumerate(confidences)), 1e-6)


@pytest.fixture(scope="module")
def spectrum():
    W = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return tp.spectrum(tp.jacobian(lambda x: x @ W.T, torch.ones(2, 4, dtype=torch.float64)))


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["certain", "certain"], "certain"),
        (["certain", "99.9 %", "certain"], "99.9 %"),
        (["99.9 %", "99.9 %"], "99.8 %"),
        (["99.9 %"] * 10, "99.0 %"),
        (["99.9 %"] * 2000, "0.0 %"),
        (["99.9 %", "calibrated"], "calibrated"),
        (["calibrated", "sampled", "99.9 %"], "sampled"),
        (["sampled", "assumed"], "assumed"),
    ],
)
def test_the_weakest_part_speaks_and_chances_add_up(parts, expected):
    assert floor_of(*parts).confidence == expected


@pytest.mark.parametrize(
    ("chances", "expected"),
    [
        ([1e-3], "99.9 %"),
        ([1e-6], "99.9 %"),
        ([5e-4, 5e-4], "99.9 %"),
        ([5e-4, 6e-4], "99.8 %"),
        ([1e-3, 1e-9], "99.8 %"),
        ([1e-3] * 3, "99.7 %"),
        ([1e-3 / 49] * 49, "99.9 %"),
        ([sum([1e-3 / 7] * 7)], "99.9 %"),
        ([sum([1e-3 / 64] * 64), sum([1e-3 / 100] * 100)], "99.8 %"),
        ([0.25], "75.0 %"),
        ([0.2501], "74.9 %"),
    ],
)
def test_a_percentage_is_never_rounded_up(chances, expected):
    assert weakest(Part("p", 1.0, "given", "99.9 %", chance) for chance in chances) == expected


def test_the_svds_chance_is_its_parts():
    assert svd_part(SvdError(1e-9, "probed", "99.9 %", 2e-4)).chance == 2e-4
    assert svd_part(SvdError(1e-9, "measured", "certain")).chance == 0


@pytest.mark.parametrize("word", [*CONFIDENCE, "99.8 %"])
def test_a_flag_is_never_shown_without_its_confidence(spectrum, word, tmp_path):
    parts = ["99.9 %", "99.9 %"] if word == "99.8 %" else [word]
    s = replace(spectrum, floor=floor_of(*parts))
    assert s.rank.words == f"certified, {word}"
    assert (s.rank.flag, s.rank.confidence) == ("certified", word)
    assert f"(certified, {word})" in repr(s)
    assert next(lines.lines(s)).endswith(f"certified, {word}")
    assert set(s.rank_curve()["confidence"]) == {word}
    row = frames.frame([s]).iloc[0]
    assert (row["flag"], row["confidence"]) == ("certified", word)
    assert table.as_json([s])[0]["confidence"] == word
    flags = next(column for column in table.rich_table([s], "").columns if column.header == "flag")
    assert list(flags.cells) == [f"certified, {word}"]


def words_in(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def test_figures_show_both(spectrum, tmp_path, monkeypatch):
    drawn = []
    original = plots._figure
    monkeypatch.setattr(plots, "_figure", lambda *size: drawn.append(original(*size)) or drawn[-1])
    other = replace(spectrum, name="B", floor=floor_of("assumed", "99.9 %"))
    pair = [replace(spectrum, name="A", floor=floor_of("99.9 %", "99.9 %")), other]
    plots.ranks(pair, "t", tmp_path / "ranks.png")
    plots.spectra(pair, "t", tmp_path / "spectra.png")
    legend, titles = words_in(drawn[0]), words_in(drawn[1])
    assert {"rank, certified, 99.8 %", "rank, certified, assumed"} <= set(legend)
    assert {"A: rank 8 of 8 (certified, 99.8 %)", "B: rank 8 of 8 (certified, assumed)"} <= set(titles)
    assert matplotlib.image.imread(tmp_path / "ranks.png").std() > 0.01


def test_a_run_shows_stores_and_compares_it(tmp_path, capsys, monkeypatch):
    run = tp.run(tokens=2, layers="1", discard_jacobian=True, out=str(tmp_path / "a"))
    word = run["L01.mlp"].floor.confidence
    assert word in ("99.9 %", "calibrated", "certain")
    assert f"certified, {word}" in call(capsys, monkeypatch, "show", tmp_path / "a")[1]
    assert f"certified, {word}" in call(capsys, monkeypatch, "show", tmp_path / "a", "--explain")[1]
    both = call(capsys, monkeypatch, "compare", tmp_path / "a", tmp_path / "a")[1]
    assert f"(certified, {word})" in both
    document = json.loads(call(capsys, monkeypatch, "compare", tmp_path / "a", tmp_path / "a", "--json")[1])
    assert document["blocks"][0]["ranks"][0]["confidence"] == word
    assert document["confidence"] == tp.compare(tmp_path / "a", tmp_path / "a").confidence
    with h5py.File(tmp_path / "a" / "results.h5", "r+") as file:
        assert file["rank_confidence"].asstr()[0] == word
        file["rank_confidence"][0] = "assumed"
    with pytest.raises(tp.VerificationError, match="do not follow"):
        tp.verify(tmp_path / "a")


def test_the_readmes_tables_have_both():
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `L0")]
    assert rows
    words = [row.split("|")[3].strip().partition(", ")[2] for row in rows]
    assert all(word in CONFIDENCE or word.endswith(" %") for word in words)


# ---- values that are not known


def test_the_energy_left_over_counts_the_error_of_the_norm_itself(spectrum):
    """‖J‖_F is up to √N·‖E‖₂ more than ‖Ĵ‖_F: here that alone lets a hidden value pass the threshold."""
    part = Part("model arithmetic", 0.1, "given", "certain")
    evidence = replace(spectrum.evidence, energy=4.0, arithmetic=part)
    s = Spectrum("A", 1, np.array([2.0]), None, Floor((part,), 0.0), evidence, "made", (), total=9)
    assert s.rest >= (2 + 3 * 0.1) ** 2 - 1.9**2
    assert s.rank_at(1.0).hi == 2
    assert s.rank_at(1.5).interval == (1, 1)


@pytest.mark.parametrize("seed", range(5))
def test_the_energy_left_over_holds_for_a_perturbation_of_that_size(seed):
    """True values under Ĵ = J + E, of which only the leading ones of Ĵ are known."""
    rng = np.random.default_rng(seed)
    J = np.diag(np.r_[10.0, np.full(19, 0.5)])
    E = -0.2 * np.eye(20) if seed == 0 else np.linalg.qr(rng.standard_normal((20, 20)))[0] * 0.2
    hat = J + E
    values = np.linalg.svd(hat, compute_uv=False)[:2]
    part = Part("model arithmetic", float(np.linalg.norm(E, 2)), "given", "certain")
    evidence = tp.spectrum(tp.jacobian(lambda x: x, torch.ones(1, 20, dtype=torch.float64))).evidence
    evidence = replace(evidence, energy=float(np.sum(hat**2)), arithmetic=part)
    s = Spectrum("A", 1, values, None, Floor((part,), 0.0), evidence, "made", (), total=20)
    true = np.linalg.svd(J, compute_uv=False)
    assert s.rest >= np.sum(true[2:] ** 2)
    for tau in (0.05, 0.3, 0.49, 0.6, 2.0):
        rank = s.rank_at(tau)
        assert rank.lo <= np.sum(true > tau) <= rank.hi
