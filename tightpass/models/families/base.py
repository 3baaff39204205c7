"""What is said of a model family: where its pieces are. One file a family, one row each, found by model type.

To add a family, write a file like `opt.py`, and import it in `__init__.py`; `blocks.py` says what each piece is used for.
Every row is checked against an ordinary forward pass when a block is built.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Generic, TypeVar

from tightpass.errors import InputError
from tightpass.models.signal import Signal

At = TypeVar("At")
ABSENT: Any = None
"""The place of a site that most layers have, in one that lacks it."""
RECORDED = {"recorded": True}
"""Marks the sites whose inputs and outputs blocks start from and are checked against."""


@dataclass(frozen=True, kw_only=True)
class Sites(Generic[At]):
    """The pieces of a layer: their paths in a family's row, their modules in a layer. Nowhere else are they listed.

    context      what mixes values over tokens; its first output is per head, concatenated, before the output projection
                 (which it may contain); absent from a layer that has no attention
    projection   the attention's output projection, a linear map from heads to width; absent with it
    mixer        what mixes values over tokens in a layer without attention, as one module
    mlp          the MLP as one module, where it is more than down(act(up(h)))
    down         the MLP's last map, a linear one; absent from an MLP of experts, which have one each
    up, act      its first map, and what stands between them; both or, where an `mlp` is not known from inside, none
    gate         of an `mlp` that is down(act(gate(h))∘up(h)) the map inside act
    gate_up      likewise, both maps as one, gate's part first
    query, key, value    the attention's input projections, linear maps from width to heads, where they stand apart
    query_key_value      all three as one, where they do not
    query_norm, key_norm    norms on queries and keys, before they are turned
    attn_norm, mlp_norm        pre-norms, that attention and MLP read through; None where there are none
    attn_post, mlp_post        norms on what they give, before it is added, likewise
    after_attn, after_mlp      norms on the residual sums after them, likewise
    """

    context: At = field(default=ABSENT, metadata=RECORDED)
    projection: At = field(default=ABSENT, metadata=RECORDED)
    down: At = field(default=ABSENT, metadata=RECORDED)
    mixer: At | None = field(default=None, metadata=RECORDED)
    mlp: At | None = field(default=None, metadata=RECORDED)
    up: At | None = field(default=None, metadata=RECORDED)
    act: At | None = None
    gate: At | None = None
    gate_up: At | None = None
    query_key_value: At | None = None
    query: At | None = None
    key: At | None = None
    value: At | None = None
    query_norm: At | None = None
    key_norm: At | None = None
    attn_norm: At | None = field(default=None, metadata=RECORDED)
    mlp_norm: At | None = field(default=None, metadata=RECORDED)
    attn_post: At | None = field(default=None, metadata=RECORDED)
    mlp_post: At | None = field(default=None, metadata=RECORDED)
    after_attn: At | None = None
    after_mlp: At | None = None

    def items(self, recorded: bool = False) -> Iterator[tuple[str, At]]:
        """Names and places of the sites that the layer has; only of those that are recorded, if asked."""
        for site in fields(Sites):
            place = getattr(self, site.name)
            if place is not None and (site.metadata == RECORDED or not recorded):
                yield site.name, place


def said_positions(base: Any) -> int | None:
    """The positions that a model's configuration says it has; None for no limit."""
    said = getattr(base.config, "max_position_embeddings", None)
    return None if said is None else int(said)


def in_order(layers: Any, config: Any) -> Iterable[Any]:
    """Every layer of a list once."""
    found: Iterable[Any] = layers
    return found


@dataclass(frozen=True)
class OwnScores:
    """What an attention that computes by itself does with T tokens' queries and keys before its softmax.

    scale     of the scores
    allowed   (1 or heads, T, T), where it looks at all; None for what its mask says
    tables    cosines and sines (T, r) by which it turns queries and keys; None where it turns none, or is handed them
    """

    scale: float
    allowed: Any = None
    tables: tuple[Any, Any] | None = None


@dataclass(frozen=True)
class Family:
    """Where the pieces of a family's models are. What may depend on the configuration is a function of it.

    model_types  the names that configurations go by
    layers       path of the list of layers, from the base model (`AutoModel`)
    sites        paths of a layer's pieces, from the layer
    sites_of     likewise of the layer with some index, where layers differ
    final_norm   path of the norm after the last layer, from the base model, where a model may have one
    head_size    attribute of `context` that holds the width of one head
    causal       whether a token sees those before it alone
    positions    how many tokens the base model has positions for: from its modules, where they know; None for no limit
    unused       prefixes of weights that hidden states never pass through
    parallel     whether attention and MLP both read the layer's input
    scale        what each branch is multiplied by before it is added
    closed       kinds of blocks whose pieces the formulas of this package know, in working and in twice float64's precision;
                 all others are differentiated automatically
    own_attention    whether the attention computes by itself, and takes no function of this package
    own_scores   of one that does, through its `_attn(query, key, value, mask)`: what that does, from its module and T
    by_head      whether `query_key_value` has each head's query, key and value in a row, and not all queries first
    model_class      name of the class in transformers, where `AutoModel` finds another one or none
    tower        attribute of what is loaded that is the base model here, where it is but a part, such as an encoder
    applied      from the list of layers to all layers as they are applied, where one is applied several times
    unnumbered   positions that the configuration counts and no token gets
    reads        what its models read, where that is no text
    implementation   which of its own computations that is
    groups       how many heads share keys and values, where the attention does not say it as most do
    units        of an MLP of experts: units that a token passes
    unsaid       sizes of layers that the configuration does not say as they are
    prepare      what is changed in our copy of a base model so that it can be differentiated; never a number
    """

    model_types: tuple[str, ...]
    layers: str
    sites: Callable[[Any], Sites[str]]
    final_norm: str | None
    head_size: str
    causal: Callable[[Any], bool]
    positions: Callable[[Any], int | None] = said_positions
    unused: tuple[str, ...] = ()
    parallel: Callable[[Any], bool] = lambda config: False
    scale: Callable[[Any], float] = lambda config: 1.0
    closed: tuple[str, ...] = ()
    own_attention: bool = False
    own_scores: Callable[[Any, int], OwnScores] | None = None
    by_head: bool = False
    model_class: str | None = None
    tower: str = ""
    applied: Callable[[Any, Any], Iterable[Any]] = in_order
    unnumbered: Callable[[Any], int] = lambda config: 0
    reads: Callable[[Any], Signal | None] = lambda config: None
    implementation: str = "eager"
    sites_of: Callable[[Any, int], Sites[str]] | None = None
    groups: Callable[[Any], int] | None = None
    units: Callable[[Any], int] = lambda config: 0
    unsaid: tuple[str, ...] = ()
    prepare: Callable[[Any], None] = lambda base: None

    def sites_at(self, config: Any, index: int) -> Sites[str]:
        """Paths of the pieces of one layer."""
        return self.sites(config) if self.sites_of is None else self.sites_of(config, index)


FAMILIES: dict[str, Family] = {}
"""All families, by model type."""
REFUSED: dict[str, str] = {}
"""What is said of model types that are known and not served: why, and the way round."""


def register(family: Family) -> Family:
    """Makes a family known."""
    FAMILIES.update(dict.fromkeys(family.model_types, family))
    return family


def family_of(config: Any, model: str | None = None) -> Family:
    """The row for a Hugging Face configuration. Raises InputError for an unknown family, with the way round.

    model   what the caller calls a model that is loaded already
    """
    kind = config.model_type
    if kind in FAMILIES:
        return FAMILIES[kind]
    near = difflib.get_close_matches(kind, FAMILIES, n=3)
    said = f"; near it are {', '.join(near)}" if near else ""
    why = REFUSED.get(kind, f"is not among the {len(FAMILIES)} of `tightpass models`{said}")
    raise InputError(
        f"a model of type {kind!r} {why}.\nAny module of it is to be had by its path: {by_path(config, model)}"
    )


def by_path(config: Any, model: str | None = None) -> str:
    """The call that gives a module of a model of any family, ready to paste."""
    name = str(getattr(config, "name_or_path", "") or "")
    loaded = f'transformers.AutoModel.from_pretrained("{name}")' if name and model is None else model or "model"
    return f'tp.jacobian(tp.block({loaded}, module="{_first_layer(config)}"))'


def _first_layer(config: Any) -> str:
    """The path of the first member of the first list of modules in such a model, built without numbers."""
    import torch
    from torch import nn
    from transformers import AutoModel

    try:
        with torch.device("meta"):
            base = AutoModel.from_config(config)
        return next(f"{name}.0" for name, module in base.named_modules() if isinstance(module, nn.ModuleList))
    except Exception:  # whatever its code raises: the way round must not hide what it is the way round of
        return "layers.0"
