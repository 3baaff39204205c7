"""The modules of a model that blocks are made of, looked up where its family's row says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from tightpass.errors import InputError
from tightpass.models.families.base import Family, Sites
from tightpass.models.linear import in_features, out_features


@dataclass(frozen=True, kw_only=True)
class LayerParts(Sites[nn.Module]):
    """The modules of one layer.

    d_head     as the attention module has it: layers may differ from the configuration, and from each other
    parallel   whether attention and MLP both read the layer's input
    scale      what each branch is multiplied by before it is added
    groups     heads that share keys and values; None for what the attention says
    units      of an MLP of experts, that a token passes
    """

    layer: nn.Module
    d_head: int
    parallel: bool = False
    scale: float = 1.0
    groups: int | None = None
    units: int = 0

    @property
    def has_attention(self) -> bool:
        return self.context is not None

    @property
    def mixing(self) -> str:
        """The site that mixes values over tokens."""
        return "context" if self.has_attention else "mixer"

    @property
    def heads(self) -> int:
        """How many heads the layer has: what its projection reads, in heads."""
        return in_features(self.projection) // self.d_head if self.has_attention else 0

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values, which several heads may share."""
        if self.key is not None:
            return out_features(self.key) // self.d_head
        shared = getattr(self.context, "num_key_value_groups", 1) if self.groups is None else self.groups
        return self.heads // int(shared)

    @property
    def d_ff(self) -> int:
        """Units of the MLP that a token passes."""
        return self.units if self.down is None else in_features(self.down)

    @property
    def plain_mlp(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """up, act and down of an MLP that is down(act(up(h))). Raises InputError for any other."""
        if self.up is None or self.act is None:
            raise InputError(f"the MLP of {type(self.layer).__name__} is not two maps with a function between them")
        return self.up, self.act, self.down

    @property
    def pre_norm(self) -> bool:
        """Whether attention or MLP read through a norm."""
        return self.attn_norm is not None or self.mlp_norm is not None

    @property
    def projection_inside(self) -> str | None:
        """The projection's path inside `context`, if it is there."""
        named = self.context.named_modules()
        return next((path for path, module in named if module is self.projection), None)

    def map(self, twin: Callable[[nn.Module], nn.Module]) -> LayerParts:
        """The same sites with each module replaced."""
        twins: dict[str, Any] = {name: twin(module) for name, module in self.items()}
        return replace(self, layer=twin(self.layer), **twins)


def parts_of(base: nn.Module, family: Family) -> tuple[LayerParts, ...]:
    """The parts of every layer of a base model. Raises InputError for what is not where the row says."""
    layers: Any = submodule(base, family.layers)
    return tuple(_layer_parts(layer, base.config, family, index) for index, layer in enumerate(layers))


def _layer_parts(layer: nn.Module, config: Any, family: Family, index: int) -> LayerParts:
    paths = family.sites_at(config, index)
    found: dict[str, Any] = {name: submodule(layer, path) for name, path in paths.items()}
    return LayerParts(
        layer=layer,
        d_head=int(getattr(found["context"], family.head_size)) if "context" in found else 0,
        parallel=family.parallel(config),
        scale=family.scale(config),
        groups=None if family.groups is None else family.groups(config),
        units=family.units(config),
        **found,
    )


def final_norm_of(base: nn.Module, family: Family) -> nn.Module | None:
    """The norm after the last layer, of a model that has one."""
    if family.final_norm is None:
        return None
    parent, _, name = family.final_norm.rpartition(".")
    norm: nn.Module | None = getattr(submodule(base, parent), name)
    return norm


def submodule(root: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path; a path that is not there names what is."""
    try:
        return root.get_submodule(path)
    except AttributeError:
        names = ", ".join(name for name, _ in root.named_children())
        raise InputError(
            f"{type(root).__name__} has no module {path!r} (it has: {names}); "
            "this version of transformers lays the model out differently"
        ) from None
