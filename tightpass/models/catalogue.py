"""The models that are known by a short name, for a list."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tightpass.models.families.base import FAMILIES
from tightpass.models.loading import demo_directory
from tightpass.models.options import KINDS
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
    """How blocks are differentiated, in words -> the model types of which that holds; those with most closed forms first."""
    found: dict[str, list[str]] = {}
    for kind, family in sorted(FAMILIES.items(), key=lambda item: (-len(item[1].closed), item[0])):
        found.setdefault(_routes(family.closed), []).append(kind)
    return found


def _routes(closed: Sequence[str]) -> str:
    """In words, where blocks of these kinds have closed forms."""
    others = [kind for kind in KINDS if kind not in closed]
    routes = (("in closed form", closed), ("by automatic differentiation", others))
    return "; ".join(f"{', '.join(kinds)} {how}" for how, kinds in routes if kinds)


def _known(name: str, source: str, said: Mapping[str, Any]) -> Known:
    return Known(
        name=name,
        source=source,
        layers=said["num_hidden_layers"],
        width=said["hidden_size"],
        heads=said["num_attention_heads"],
        positions=said["max_position_embeddings"],
    )
