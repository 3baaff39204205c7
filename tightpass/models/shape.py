"""What a model's modules say of their sizes: the only source of them for all that is not in `models`."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import nn

from tightpass.models.families import family_of, in_features, layer_parts, out_features, submodule


@dataclass(frozen=True)
class LayerShape:
    """Of one layer: query heads, heads of keys and values, width of a head, units of the MLP."""

    heads: int
    kv_heads: int
    d_head: int
    d_ff: int

    def weights(self, width: int) -> int:
        """Entries of its linear maps, in a model of this width."""
        return 2 * width * ((self.heads + self.kv_heads) * self.d_head + self.d_ff)


@dataclass(frozen=True)
class Shape:
    """layers       from the modules, which may differ from the configuration, and from each other
    width        of the residual stream, d
    positions    the most tokens that there are positions for
    parameters   of the whole base model
    causal       whether a token sees those before it alone
    noted        where the configuration says otherwise, in words
    """

    layers: tuple[LayerShape, ...]
    width: int
    positions: int
    parameters: int
    causal: bool
    noted: tuple[str, ...]

    @property
    def widest(self) -> LayerShape:
        """A layer with as much of everything as any has."""
        each = zip(*map(astuple, self.layers), strict=True)
        return LayerShape(*(max(sizes) for sizes in each))


def shape_of(base: nn.Module) -> Shape:
    """The sizes of a base model. Raises InputError for an unknown family."""
    config: Any = base.config
    family = family_of(config)
    modules: Any = submodule(base, family.layers)
    layers = tuple(_of_layer(layer_parts(layer, family, config)) for layer in modules)
    width = out_features(layer_parts(modules[0], family, config).projection)
    said = {
        "layers": (len(layers), int(config.num_hidden_layers)),
        "width": (width, int(config.hidden_size)),
        "heads": (max(layer.heads for layer in layers), int(config.num_attention_heads)),
    }
    pruned = [i for i, layer in enumerate(layers) if layer.heads != int(config.num_attention_heads)]
    noted = [f"{here} {name}, where config.json says {there}" for name, (here, there) in said.items() if here != there]
    if pruned and not any("heads" in note for note in noted):
        noted.append(f"fewer heads in layers {', '.join(map(str, pruned))} than config.json says")
    return Shape(
        layers=layers,
        width=width,
        positions=int(config.max_position_embeddings),
        parameters=sum(p.numel() for p in base.parameters()),
        causal=family.causal(config),
        noted=tuple(noted),
    )


def _of_layer(parts: Any) -> LayerShape:
    return LayerShape(
        heads=parts.heads,
        kv_heads=out_features(parts.key) // parts.d_head,
        d_head=parts.d_head,
        d_ff=in_features(parts.down),
    )


def shape_of_config(config: Any) -> Shape:
    """The sizes of the model that a configuration describes, from modules without numbers."""
    from transformers import AutoModel

    with torch.device("meta"):
        return shape_of(AutoModel.from_config(config))
