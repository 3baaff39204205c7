"""A run where nothing can be written: shown and verified as it lies, and no new one begun there."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tightpass as tp

QUESTION = ["--tokens", "2", "--layers", "1-2"]
DROP, OVERRIDE, SEARCH = 24, 1, 2
"""Of Linux: prctl's PR_CAPBSET_DROP, and what lets root write where nobody may, CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""


def as_anybody():
    """Of a process about to start: root without its privilege over files."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in (OVERRIDE, SEARCH):
            if libc.prctl(DROP, capability, 0, 0, 0) != 0:
                raise OSError(ctypes.get_errno(), "cannot drop a capability")


def tightpass(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tightpass", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=as_anybody,
    )


def modes(directory: Path, folder: int, file: int) -> None:
    for path in [directory, *directory.rglob("*")]:
        path.chmod(folder if path.is_dir() else file)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tp.run(tokens=2, layers="1-2", out=str(tmp_path_factory.mktemp("readonly") / "a")).directory


@pytest.fixture
def sealed(made, tmp_path):
    """A copy of a finished run in which nobody can write, and all of its files as they were."""
    if sys.platform != "linux" and os.geteuid() == 0:
        pytest.skip("root writes anywhere")
    copy = shutil.copytree(made, tmp_path / "a")
    modes(copy, 0o555, 0o444)
    yield copy
    modes(copy, 0o755, 0o644)


def contents(directory):
    return {path: path.read_bytes() if path.is_file() else None for path in directory.rglob("*")}


@pytest.mark.parametrize("gathered", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_sealed_run_is_shown_and_verified_as_it_is(sealed, gathered):
    if not gathered:
        sealed.chmod(0o755)
        (sealed / "results.h5").unlink()
        sealed.chmod(0o555)
    before = contents(sealed)
    shown, verified = tightpass("show", sealed), tightpass("verify", sealed)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "L02.mlp" in shown.stdout
    assert (verified.returncode, verified.stderr) == (0, "")
    assert verified.stdout.count("checksums") == 2
    assert contents(sealed) == before


@pytest.mark.slow
def test_a_finished_run_that_is_sealed_is_asked_again(sealed):
    before = contents(sealed)
    done = tightpass("run", *QUESTION, "--out", sealed)
    assert done.returncode == 0
    assert done.stderr.startswith("figures were not drawn (PermissionError: ")
    assert len(done.stderr.splitlines()) == 1
    assert "L02.mlp" in done.stdout
    assert contents(sealed) == before


@pytest.mark.parametrize("unfinished", [pytest.param(True, marks=pytest.mark.slow), False])
def test_where_nothing_can_be_written_no_run_is_begun(sealed, unfinished):
    """Before a model is loaded; the rest of a run at the latest before its first job."""
    out = sealed if unfinished else sealed / "new"
    if unfinished:
        modes(sealed, 0o755, 0o644)
        (sealed / "records/L02.mlp.h5").unlink()
        (sealed / "results.h5").unlink()
        modes(sealed, 0o555, 0o444)
    done = tightpass("run", *QUESTION, "--out", out)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {sealed} cannot be written to: permission denied; choose another --out\n"


def test_a_run_that_cannot_be_read_is_no_damage(sealed):
    (sealed / "records/L02.mlp.h5").chmod(0)
    for command in ("show", "verify"):
        done = tightpass(command, sealed)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"error: {sealed}/records/L02.mlp.h5 cannot be read: permission denied\n"
