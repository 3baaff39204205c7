"""Weights that a model and its files do not have in common: none may be made up, none of a layer left over."""

from __future__ import annotations

from typing import Any

from tightpass.errors import InputError
from tightpass.models.families.base import Family


def refuse_invented(name: str, family: Family, found: dict[str, Any]) -> None:
    """Raises InputError if some of the weights in use were not in the files: transformers draws such at random.

    Nor may files hold weights of layers (or parts of layers) that the model has no place for.
    """
    missing = sorted(key for key in found["missing_keys"] if not key.startswith(family.unused))
    unexpected = sorted(found["unexpected_keys"])
    if prefix := _prefix(missing, unexpected):
        raise InputError(
            f"the keys of {name}'s weights carry a prefix that the model does not have: {prefix!r}, as in "
            f"{prefix}{missing[0]}.\nStrip it from every key and save the file again"
        )
    if found["mismatched_keys"]:
        key, stored, expected = min(found["mismatched_keys"])
        raise InputError(
            f"{len(found['mismatched_keys'])} weights of {name} have another shape than config.json says: "
            f"{key} is {tuple(stored)}, expected {tuple(expected)}.\nThe config belongs to another model; put its own there"
        )
    if missing:
        raise InputError(
            f"{len(missing)} weights of {name} are not in its files: {_some(missing)}.\n"
            "Either the files are incomplete, or config.json describes a larger model; --weights random runs without any"
        )
    beyond = [key for key in unexpected if f"{family.layers}." in key]
    if beyond:
        raise InputError(
            f"the files of {name} hold {len(beyond)} weights that config.json has no place for: {_some(beyond)}.\n"
            "It describes another model (fewer layers, or no adapters); put the model's own there"
        )


def _prefix(missing: list[str], unexpected: list[str]) -> str | None:
    """What stands before a missing key in the files, if anything does."""
    for key in missing:
        for other in unexpected:
            if other.endswith("." + key):
                return other.removesuffix(key)
    return None


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
