"""What makes a job here and now, and what all jobs of a run have in common: computed once, and stored with them."""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import torch

from tightpass.kernels import native
from tightpass.models.loading import Model
from tightpass.models.tokens import Tokens
from tightpass.runs.jobs import Job

PACKAGES = ("torch", "transformers", "numpy", "scipy", "h5py")


def provenance_of(model: Model, tokens: Tokens, job: Job) -> dict[str, Any]:
    """What all jobs of a run have in common, and the names of all in order."""
    common = {
        "jobs": list(job.listed),
        "model": model.name,
        "revision": model.revision,
        "weights": model.weights,
        "weights_sha256": job.weights,
        "tokens": tokens.origin,
    }
    return common if tokens.signal is None else common | {"signal_sha256": tokens.digest}


def made_here(device: str) -> dict[str, Any]:
    """What makes a job in this process, from now on: versions, threads, kind of host, device, kernels, and the time."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "tightpass": version("tightpass"),
        "packages": {name: version(name) for name in PACKAGES} | {"hdf5": h5py.version.hdf5_version},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "device": device,
        "threads": torch.get_num_threads(),
        "kernels": native.description(),
    }


def processor() -> str:
    """The processor's name, without the host's."""
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        for line in listed.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
