"""From a configuration to modules, and to the part of them that is run."""

from __future__ import annotations

from typing import Any

from torch import nn

from tightpass.models.families.base import Family, family_of


def class_of(family: Family) -> Any:
    """The class of transformers that reads the family's weights."""
    import transformers  # takes seconds: only when needed

    return getattr(transformers, family.model_class or "AutoModel")


def built(config: Any, **options: Any) -> nn.Module:
    """The base model of a configuration, with weights as transformers draws them."""
    family = family_of(config)
    found = class_of(family)
    make = found.from_config if family.model_class is None else found._from_config
    return tower_of(make(config, **options), family)


def tower_of(base: nn.Module, family: Family) -> nn.Module:
    """The part of a model that is run here; a model that is that part is given back."""
    part: nn.Module = getattr(base, family.tower, base) if family.tower else base
    return part
