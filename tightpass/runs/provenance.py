"""What made a run's jobs, for people: what is stored beside each job, read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tightpass.store.records import Record


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
