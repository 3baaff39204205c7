"""Where each model family keeps its pieces: the table.

Paths of `layers` and `final_norm` start at the base model (`AutoModel`), all others at one
layer. Every row is checked against an ordinary forward pass when a block is built.
To add a family, add a row; see `blocks.py` for what each piece is used for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tightpass.errors import InputError


@dataclass(frozen=True)
class Family:
    """One row of the table.

    context      module that mixes values over tokens; its first output is per head,
                 concatenated, before the output projection (which it may contain)
    query, key, value    the attention's input projections, linear maps from width to heads
    projection   the attention's output projection, a linear map from heads to width
    attn_norm    pre-norm that the attention reads through, where the family is pre-norm
    up, act, down, mlp_norm    likewise for the MLP
    after_attn, after_mlp      norms on the residual sums, where the family is post-norm
    head_size    attribute of `context` that holds the width of one head
    unused       prefixes of weights that hidden states never pass through
    """

    model_types: tuple[str, ...]
    layers: str
    context: str
    query: str
    key: str
    value: str
    projection: str
    up: str
    act: str
    down: str
    attn_norm: str | None
    mlp_norm: str | None
    final_norm: str | None
    pre_norm: Callable[[Any], bool]
    post_norm: Callable[[Any], bool]
    causal: Callable[[Any], bool]
    after_attn: str
    after_mlp: str
    head_size: str
    unused: tuple[str, ...] = ()

    def sum_norms(self, layer: nn.Module, config: Any) -> tuple[nn.Module | None, nn.Module | None]:
        """The norms on the residual sums after attention and MLP, where the family is post-norm."""
        if not self.post_norm(config):
            return None, None
        return submodule(layer, self.after_attn), submodule(layer, self.after_mlp)


FAMILIES = (
    Family(
        model_types=("opt",),
        layers="decoder.layers",
        context="self_attn",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        projection="self_attn.out_proj",
        up="fc1",
        act="activation_fn",
        down="fc2",
        attn_norm="self_attn_layer_norm",
        mlp_norm="final_layer_norm",  # the layer's own; the decoder's has the same name
        final_norm="decoder.final_layer_norm",
        pre_norm=lambda config: bool(config.do_layer_norm_before),
        post_norm=lambda config: not config.do_layer_norm_before,  # only opt-350m
        causal=lambda config: True,
        after_attn="self_attn_layer_norm",
        after_mlp="final_layer_norm",
        head_size="head_dim",
    ),
    Family(
        model_types=("bert",),
        layers="encoder.layer",
        context="attention.self",
        query="attention.self.query",
        key="attention.self.key",
        value="attention.self.value",
        projection="attention.output.dense",
        up="intermediate.dense",
        act="intermediate.intermediate_act_fn",
        down="output.dense",
        attn_norm=None,
        mlp_norm=None,
        final_norm=None,
        pre_norm=lambda config: False,
        post_norm=lambda config: True,
        causal=lambda config: bool(config.is_decoder),
        after_attn="attention.output.LayerNorm",
        after_mlp="output.LayerNorm",
        head_size="attention_head_size",
        unused=("pooler.",),
    ),
)


def family_of(config: Any) -> Family:
    """The row for a Hugging Face configuration. Raises InputError for an unknown family."""
    for family in FAMILIES:
        if config.model_type in family.model_types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise InputError(f"models of type {config.model_type!r} are not supported yet; supported: {known}")


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


@dataclass(frozen=True)
class LayerParts:
    """The modules of one layer that blocks are made of; norms are None in post-norm models."""

    layer: nn.Module
    context: nn.Module
    query: nn.Module
    key: nn.Module
    value: nn.Module
    projection: nn.Module
    projection_inside: str | None  # the projection's path inside `context`, if it is there
    attn_norm: nn.Module | None
    mlp_norm: nn.Module | None
    up: nn.Module
    act: nn.Module
    down: nn.Module
    d_head: int  # as the attention module has it: layers may differ from the config, and from each other

    @property
    def heads(self) -> int:
        """How many heads the layer has: what its projection reads, in heads."""
        return in_features(self.projection) // self.d_head


def in_features(module: nn.Module) -> int:
    """What a linear map reads, be it a Linear or an adapter around one."""
    inner: Any = module
    while not hasattr(inner, "in_features"):
        inner = getattr(inner, "base_layer", None)
        if inner is None:
            raise InputError(f"cannot tell how wide the input of {type(module).__name__} is (no in_features)")
    return int(inner.in_features)


def out_features(module: nn.Module) -> int:
    """What a linear map gives, likewise."""
    inner: Any = module
    while not hasattr(inner, "out_features"):
        inner = getattr(inner, "base_layer", None)
        if inner is None:
            raise InputError(f"cannot tell how wide the output of {type(module).__name__} is (no out_features)")
    return int(inner.out_features)


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module is its weight and bias and nothing else: no adapter, no forward of its own, no hooks."""
    return (
        isinstance(module, nn.Linear)
        and type(module).forward is nn.Linear.forward
        and "forward" not in vars(module)
        and not module._forward_hooks
        and not module._forward_pre_hooks
    )


def linear_map(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (out, in) and bias (out,) of a linear map as the module applies it, adapters included."""
    some = next(module.parameters())
    width = in_features(module)
    with torch.no_grad():
        bias: torch.Tensor = module(some.new_zeros(1, width))[0]
        if is_plain_linear(module):
            weight: Any = module.weight
            return weight.detach(), bias
        return (module(torch.eye(width, dtype=some.dtype, device=some.device)) - bias).T, bias


def layer_parts(layer: nn.Module, family: Family, config: Any) -> LayerParts:
    """Looks up every piece of one layer."""
    inside = family.projection.startswith(family.context + ".")
    pre = family.pre_norm(config)
    return LayerParts(
        layer=layer,
        context=submodule(layer, family.context),
        query=submodule(layer, family.query),
        key=submodule(layer, family.key),
        value=submodule(layer, family.value),
        projection=submodule(layer, family.projection),
        projection_inside=family.projection[len(family.context) + 1 :] if inside else None,
        attn_norm=submodule(layer, family.attn_norm) if pre and family.attn_norm else None,
        mlp_norm=submodule(layer, family.mlp_norm) if pre and family.mlp_norm else None,
        up=submodule(layer, family.up),
        act=submodule(layer, family.act),
        down=submodule(layer, family.down),
        d_head=int(getattr(submodule(layer, family.context), family.head_size)),
    )
