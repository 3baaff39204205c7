"""Which driver is the fastest on a GPU: timed once, and kept in a file, so that every process of a machine takes the same."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from tightpass.arrays import on_host
from tightpass.store.publish import published

Array = Any
Candidate = tuple[str, Callable[[Array], Array]]
LIBRARIES = ("tightpass", "torch", "cupy-cuda13x")
CHOICES: dict[str, str] = {}
"""Those of this process."""


def fastest(kind: str, candidates: Sequence[Candidate], sample: Callable[[], Array]) -> str:
    """The name of the candidate that takes the least time for a sample, its answer on the host.

    kind     what it is timed for: device, precision and size; versions of libraries are added
    sample   makes an argument, where nothing is known yet
    """
    key = "; ".join([kind, *(f"{name} {_version(name)}" for name in LIBRARIES)])
    if key not in CHOICES:
        known = stored().get(key)
        names = [name for name, _ in candidates]
        CHOICES[key] = known if known in names else remembered(key, _timed(candidates, sample()))
    return CHOICES[key]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _timed(candidates: Sequence[Candidate], argument: Array) -> str:
    """After a run to warm up; what cannot do it is no candidate."""
    seconds = {}
    for name, run in candidates:
        try:
            on_host(run(argument))
            start = time.perf_counter()
            on_host(run(argument))
            seconds[name] = time.perf_counter() - start
        except (ArithmeticError, RuntimeError, MemoryError, np.linalg.LinAlgError) as error:
            print(f"{name} is left out: {str(error).splitlines()[0]}", file=sys.stderr)
    return min(seconds, key=lambda name: seconds[name]) if seconds else candidates[0][0]


def place() -> Path:
    """The file."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tightpass" / "drivers.json"


def stored() -> dict[str, str]:
    """What is in the file; nothing, where it is not there, or none of ours."""
    try:
        found = json.loads(place().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(name) for key, name in found.items()} if isinstance(found, dict) else {}


def remembered(key: str, name: str) -> str:
    """Adds to the file, whole or not at all; where nothing can be written, only this process knows."""
    with suppress(OSError):
        place().parent.mkdir(parents=True, exist_ok=True)
        with published(place()) as part:
            part.write_text(json.dumps(stored() | {key: name}, indent=1, sort_keys=True), encoding="utf-8")
    return name
