"""Where a run's numbers come from: the question's side once, and what made each job beside that job."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py

from tightpass.kernels import native
from tightpass.store.records import Record

if TYPE_CHECKING:  # readers of stored numbers do without torch
    from tightpass.models.loading import Model
    from tightpass.models.tokens import Tokens
    from tightpass.runs.jobs import Job

PACKAGES = ("torch", "transformers", "numpy", "scipy", "h5py")


def provenance_of(model: Model, tokens: Tokens, job: Job) -> dict[str, Any]:
    """What all jobs of a run have in common, and the names of all in order."""
    return {
        "jobs": list(job.listed),
        "model": model.name,
        "revision": model.revision,
        "weights": model.weights,
        "weights_sha256": job.weights,
        "tokens": tokens.origin,
    }


def made_here(device: str) -> dict[str, Any]:
    """What makes a job in this process, from now on: versions, threads, kind of host, device, kernels, and the time."""
    import torch

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


def made_differently(records: Iterable[Record]) -> list[str]:
    """What was not the same for all jobs, a line each: versions, threads, hosts, devices, kernels."""
    by_name: dict[str, dict[str, list[str]]] = {}
    for record in records:
        for name, value in _flat(record.made).items():
            by_name.setdefault(name, {}).setdefault(value, []).append(record.spectrum.name)
    return [
        f"Jobs were made by {len(values)} {_PLURAL.get(name, f'versions of {name}')}: "
        + ", ".join(f"{value} ({_few(names)})" for value, names in values.items())
        for name, values in by_name.items()
        if len(values) > 1
    ]


_PLURAL = {
    "tightpass": "versions",
    "platform": "platforms",
    "processor": "processors",
    "device": "devices",
    "threads": "numbers of threads",
    "kernels": "kinds of kernels",
}


def _flat(made: dict[str, Any]) -> dict[str, str]:
    """Without the time, which always differs, and with each package by its name."""
    packages = made.get("packages")
    own = {name: value for name, value in made.items() if name not in ("packages", "started")}
    return {name: str(value) for name, value in (own | (packages if isinstance(packages, dict) else {})).items()}


def _few(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, {names[1]} .. {names[-1]}"


def in_a_line(record: Record) -> str:
    """What made a job, for people."""
    made, seconds = record.made, sum(record.seconds.values())
    packages = made.get("packages", {})
    parts = [
        f"tightpass {made['tightpass']}" if "tightpass" in made else None,
        *(f"{name} {packages[name]}" for name in ("torch", "numpy") if name in packages),
        f"{made['threads']} threads" if "threads" in made else None,
        made.get("device"),
        made.get("processor") or made.get("platform"),
        f"kernels {made['kernels']}" if "kernels" in made else None,
        made.get("started"),
        f"{seconds:.1f} s",
    ]
    return "made by: " + ", ".join(str(part) for part in parts if part)
