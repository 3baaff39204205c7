"""Every lower bound of pyproject.toml is a version that was installed and run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
MINIMUM = ROOT / "constraints-minimum.txt"
NOT_TRIED = {"cupy-cuda13x"}  # needs a GPU


def pins(path: Path) -> dict[str, Version]:
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    pairs = (line.split("==") for line in lines if line)
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def bounds() -> dict[str, Version]:
    """Package -> its lower bound, of what the package, its build, its tests and its development need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    for extra in project["project"]["optional-dependencies"].values():
        wanted += extra
    found: dict[str, set[Version]] = {}
    for requirement in map(Requirement, wanted):
        (bound,) = requirement.specifier
        assert bound.operator == ">=", f"{requirement}: only lower bounds are declared"
        found.setdefault(canonicalize_name(requirement.name), set()).add(Version(bound.version))
    assert all(len(versions) == 1 for versions in found.values()), f"two bounds of one package: {found}"
    return {name: versions.pop() for name, versions in found.items() if name not in NOT_TRIED}


def test_bounds_are_the_versions_that_were_tried():
    """Those of CI's second environment; what only development needs is tried in its first."""
    tried = pins(ROOT / "constraints.txt") | pins(MINIMUM)
    assert bounds() == {name: tried.get(name) for name in bounds()}


def test_the_minimum_versions_are_those_of_a_bound():
    assert set(pins(MINIMUM)) <= set(bounds())


def test_ordinary_versions_are_not_below_the_bounds():
    ordinary = pins(ROOT / "constraints.txt")
    assert {name: version for name, version in bounds().items() if ordinary.get(name, version) < version} == {}


@pytest.mark.slow
def test_the_suite_passes_with_the_minimum_versions(tmp_path):
    source = shutil.copytree(
        ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(".git", "build", "*.so", ".*cache")
    )
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TIGHTPASS_TEST_CHECKOUT")}
    constrained = {"PIP_CONSTRAINT": str(MINIMUM), "PIP_BUILD_CONSTRAINT": str(MINIMUM), "TIGHTPASS_CUDA": "OFF"}
    subprocess.run([python, "-m", "pip", "install", "-q", ".[test]"], cwd=source, env=kept | constrained, check=True)
    # not `python -m pytest`, which would import the sources instead of what was installed
    subprocess.run([python.with_name("pytest"), "-q"], cwd=source, env=kept, check=True)
