"""The half of the package that serves GPUs: with CuPy and the CUDA kernels on a GPU, or, without one, with a stand-in for CuPy
(`standin/`) and the kernels on an emulated device (`csrc/tests/cuda`). Elsewhere nothing here is run.

    TIGHTPASS_CUDA=EMULATED pip install --no-deps --target EMULATED .
    PYTHONPATH=EMULATED:tests/device/standin pytest tests/device
"""

from __future__ import annotations

import importlib.util

import pytest

from tightpass.kernels import native


def is_served() -> bool:
    if native.extension is None or not native.extension.cuda_built() or importlib.util.find_spec("cupy") is None:
        return False
    import cupy

    try:
        return cupy.cuda.runtime.getDeviceCount() > 0
    except cupy.cuda.runtime.CUDARuntimeError:
        return False


collect_ignore_glob = [] if is_served() else ["test_*.py"]


@pytest.fixture
def log():
    """Launches and copies, which only the stand-in counts."""
    import cupy

    if not hasattr(cupy, "LOG"):
        pytest.skip("only the stand-in counts launches")
    cupy.LOG.clear()
    return cupy.LOG


@pytest.fixture
def second():
    """Another device than the current one."""
    import cupy

    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one GPU")
    return cupy.cuda.Device(1)


@pytest.fixture(autouse=True)
def _choices(monkeypatch, tmp_path):
    """No choice of drivers from another test."""
    from tightpass.spectra import drivers

    monkeypatch.setattr(drivers, "CHOICES", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
