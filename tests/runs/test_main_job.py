"""The main job on trained weights: what the README promises."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import tightpass as tp
from tightpass.models.loading import demo_directory

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return tp.run(out=str(tmp_path_factory.mktemp("demo") / "run"))


def test_the_demo_model_has_tight_passes(demo):
    table = demo.table()
    tight = table[(table["flag"] == "certified") & (table["rank_high"] < table["size"] / 2)]
    assert len(tight) >= 3
    assert (tight["cliff_ratio"] > 1e9).all()
    assert (table["rank_high"] <= table["bound"]).all()
    for s in demo.spectra:
        assert np.all(np.diff(s.values) <= 0)
        assert s.floor.total < 1e-12 * s.values[0]


def test_the_demo_model_is_small_and_has_a_card():
    files = list(demo_directory().iterdir())
    assert sum(f.stat().st_size for f in files) <= 8 * 2**20
    card = (demo_directory() / "README.md").read_text()
    bits = {
        name: float(value)
        for name, value in re.findall(r"\| (?:\*\*)?(held-out|smoothed bigram)[^|]*\| (?:\*\*)?([\d.]+)", card)
    }
    assert bits["held-out"] <= bits["smoothed bigram"] - 0.25


def test_float32_sees_the_same_rank_above_its_own_floor(tmp_path):
    runs = {d: tp.run(out=str(tmp_path / d), dtype=d, tokens=16, layers="1-3") for d in ("float32", "float64")}
    for name in runs["float64"].names:
        single, double = runs["float32"][name], runs["float64"][name]
        assert (
            np.abs(single.values - double.values).max()
            <= single.floor.total + double.floor.total + 1e-5 * double.values[0]
        )
        assert single.rank.lo <= double.rank.hi


@pytest.mark.parametrize(("block", "tokens"), [("mlp", 8), ("attn", 3), ("head", 2)])
def test_minilm(minilm, tmp_path, block, tokens):
    run = tp.run(minilm, block=block, tokens=tokens, layers="0", out=str(tmp_path / "m"))
    assert all(s.rank.hi <= 384 * tokens for s in run.spectra)
    if block == "head":
        assert len(run.names) == 12
        assert all(s.rank.interval == (2 * 32, 2 * 32) for s in run.spectra)
    model = tp.load_model(minilm)
    made = tp.block(model, block, layer=0, head=0 if block == "head" else None, tokens=tokens)
    J = torch.func.jacrev(made.function())(made.x).reshape(made.x.numel(), -1)
    values = torch.linalg.svdvals(J).numpy()
    assert np.abs(run.spectra[0].values - values).max() <= 1e-12 * values[0]


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    for code in blocks:
        exec(compile(code, "README.md", "exec"), {})


def test_the_figures_are_drawn(demo):
    from matplotlib.image import imread

    for name in ("ranks.png", "spectra.png"):
        picture = imread(demo.directory / name)
        assert picture.shape[0] > 300
        assert picture.std() > 0.01
