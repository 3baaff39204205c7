"""What this installation has, for bug reports and for trusting timings."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from threadpoolctl import threadpool_info

from tightpass.kernels import native
from tightpass.memory import free_memory
from tightpass.units import format_bytes

PACKAGES = ("tightpass", "torch", "transformers", "numpy", "scipy", "h5py", "xarray", "cupy-cuda13x")


def diagnosis() -> dict[str, Any]:
    """Versions, processor, threads, BLAS, GPU and free memory, as strings."""
    return {
        **{name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": str(torch.get_num_threads()),
        "NumPy BLAS": ", ".join(
            sorted(
                {
                    f"{pool['internal_api']} {pool['version']} ({pool['architecture']})"
                    for pool in threadpool_info()
                    if pool["user_api"] == "blas" and "architecture" in pool
                }
            )
        )
        or "unknown",
        "torch BLAS": "MKL" if torch.backends.mkl.is_available() else "other",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use",
        "kernels": native.description(),
        "free memory": format_bytes(free_memory()),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
