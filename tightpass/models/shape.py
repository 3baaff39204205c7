"""What a model's modules say of their sizes: the only source of them for all that is not in `models`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import nn

from tightpass.models.architecture import built, tower_of
from tightpass.models.families.base import Family, family_of
from tightpass.models.linear import out_features
from tightpass.models.parts import LayerParts, parts_of, token_embedding
from tightpass.models.signal import Signal

SAID = {
    "layers": ("num_hidden_layers",),
    "width": ("hidden_size",),
    "positions": ("max_position_embeddings",),
    "heads": ("num_attention_heads",),
    "kv_heads": ("num_key_value_heads",),
    "d_head": ("head_dim",),
    "d_ff": ("ffn_dim", "intermediate_size"),
}
"""What configurations call a size."""
EXPERTS_AXES = 3
"""Of a parameter that has a matrix for each expert."""
WORDS = {"kv_heads": "heads of keys and values", "d_head": "features a head", "d_ff": "units"}


@dataclass(frozen=True)
class LayerShape:
    """Of one layer: query heads, heads of keys and values, width of a head, all 0 where it has no attention; units of the
    MLP, whether its pieces read through norms of their own, whether its units are ReLUs, how many numbers its parameters are,
    whether the MLP is gated, and whether it has experts."""

    heads: int
    kv_heads: int
    d_head: int
    d_ff: int
    pre_norm: bool
    relu: bool
    parameters: int
    gated: bool = False
    routed: bool = False


@dataclass(frozen=True)
class Shape:
    """layers       from the modules, which may differ from the configuration, and from each other
    width        of the residual stream, d
    positions    the most tokens that there are positions for; None for no limit
    parameters   of the whole base model
    outside      those that are neither in a layer nor in the table of token embeddings
    largest_layer, largest_weight    parameters of the largest layer, and of the largest one in a layer
    causal       whether a token sees those before it alone
    closed       kinds of blocks that the formulas of this package know
    noted        where the configuration says otherwise, in words
    reads        what the model reads, where that is no text
    """

    layers: tuple[LayerShape, ...]
    width: int
    positions: int | None
    parameters: int
    outside: int
    largest_layer: int
    largest_weight: int
    causal: bool
    closed: tuple[str, ...]
    noted: tuple[str, ...]
    reads: Signal | None = None

    @property
    def widest(self) -> LayerShape:
        """A layer with as much of everything as any has."""
        each = zip(*map(astuple, self.layers), strict=True)
        return LayerShape(*(max(sizes) for sizes in each))


def shape_of(base: nn.Module) -> Shape:
    """The sizes of a base model. Raises InputError for an unknown family."""
    family = family_of(base.config)
    base = tower_of(base, family)
    return shape_of_parts(base, family, parts_of(base, family))


def shape_of_parts(base: nn.Module, family: Family, parts: Sequence[LayerParts]) -> Shape:
    """Likewise, once its parts are found."""
    config: Any = base.config
    layers = tuple(map(_of_layer, parts))
    width = _width(parts, config)
    positions = family.positions(base)
    whole = {"layers": len(layers), "width": width, "positions": positions}
    return Shape(
        layers=layers,
        width=width,
        positions=positions,
        **_counted(base, parts),
        causal=family.causal(config),
        closed=family.closed,
        noted=(
            *_differences(config, whole, family.unnumbered(config)),
            *_differences_of_layers(config, layers, family.unsaid),
        ),
        reads=family.reads(config),
    )


def _of_layer(parts: LayerParts) -> LayerShape:
    own = sum(p.numel() for p in parts.layer.parameters())
    relu = isinstance(parts.act, nn.ReLU) and not parts.gated
    routed = any(p.ndim == EXPERTS_AXES for p in parts.layer.parameters())
    return LayerShape(
        parts.heads, parts.kv_heads, parts.d_head, parts.d_ff, parts.pre_norm, relu, own, parts.gated, routed
    )


def _width(parts: Sequence[LayerParts], config: Any) -> int:
    """Of the residual stream: what an output projection gives, where a layer has one."""
    return next((out_features(p.projection) for p in parts if p.has_attention), None) or int(config.hidden_size)


def _counted(base: nn.Module, parts: Sequence[LayerParts]) -> dict[str, int]:
    """Parameters: of all, of what stays of a model whose layers come and go, and of the largest of these."""
    layers = {part.layer: [p.numel() for p in part.layer.parameters()] for part in parts}
    embedding = token_embedding(base)
    total = sum(p.numel() for p in base.parameters())
    table = 0 if embedding is None else embedding.weight.numel()
    return {
        "parameters": total,
        "outside": total - table - sum(map(sum, layers.values())),
        "largest_layer": max(map(sum, layers.values())),
        "largest_weight": max(map(max, layers.values())),
    }


def _said(config: Any, size: str) -> int | None:
    """What the configuration says of a size, if anything."""
    values = (getattr(config, name, None) for name in SAID[size])
    return next((int(value) for value in values if value is not None), None)


def _differences(config: Any, sizes: dict[str, int | None], unnumbered: int) -> Iterator[str]:
    """Sizes of the whole model that the configuration says otherwise."""
    for name, here in sizes.items():
        counted = here + unnumbered if name == "positions" and here is not None else here
        if (there := _said(config, name)) not in (None, counted):
            yield f"{here} {name} (not {there})"


def _differences_of_layers(config: Any, layers: Sequence[LayerShape], unsaid: tuple[str, ...]) -> Iterator[str]:
    """Likewise of some layers: "2 heads (not 3) in layer 1"."""
    for name in (size for size in ("heads", "kv_heads", "d_head", "d_ff") if size not in unsaid):
        there, found = _said(config, name), [int(getattr(layer, name)) for layer in layers]
        for here in sorted(set(found) - {there, 0}) if there is not None else ():
            where = [i for i, value in enumerate(found) if value == here]
            yield f"{here} {WORDS.get(name, name)} (not {there}) in {_listed(where)}"


def _listed(layers: list[int]) -> str:
    named = ", ".join(map(str, layers[:6])) + (f" and {len(layers) - 6} more" if len(layers) > 6 else "")
    return f"{'layer' if len(layers) == 1 else 'layers'} {named}"


def shape_of_config(config: Any) -> Shape:
    """The sizes of the model that a configuration describes, from modules without numbers."""
    with torch.device("meta"):
        return shape_of(built(config))
