"""A question -> its jobs: one block of one text each, as plain data that any process can be handed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from tightpass.errors import InputError
from tightpass.evidence.leading import DEFAULT_K
from tightpass.models.blocks import KINDS, Options
from tightpass.models.shape import Shape
from tightpass.runs.question import Config, parse_layers

ALGORITHM = 6
"""Part of every shard's identity: raised when the same question would give other numbers."""


@dataclass(frozen=True)
class Job:
    """One block of one text: all that an engine has to know, small and picklable.

    question   the run's, its text read, its model by its full name
    listed     names of all jobs of the run, in order
    identity   hash of all that defines the numbers, not of where or by whom they are computed
    weights    hash of the model's weights
    memory     bytes to stay within
    """

    question: Config
    block: Options
    listed: tuple[str, ...]
    identity: str
    weights: str
    token_ids: tuple[int, ...]
    memory: int

    @property
    def name(self) -> str:
        return self.block.name


def blocks_of(config: Config, shape: Shape) -> list[Options]:
    """The blocks of a run of a model, in order. Raises InputError for what the model does not have."""
    heads = [layer.heads for layer in shape.layers]
    if config.block not in KINDS:
        raise InputError(f"unknown block {config.block!r}; expected one of {', '.join(KINDS)}")
    if config.head is not None and config.block != "head":
        raise InputError(f"--head belongs to --block head, got --block {config.block}")
    if config.residual and config.block in ("layer", "model"):
        raise InputError(f"a {config.block} always contains its residuals; leave out --residual")
    common = {"norm": config.norm, "residual": config.residual}
    if config.block == "model":
        if config.layers.strip() != "all":
            raise InputError("--layers does not apply to --block model, which is all layers at once")
        return [Options("model", **common)]
    layers = parse_layers(config.layers, len(heads))
    if config.block != "head":
        return [Options(config.block, layer, **common) for layer in layers]
    for layer in layers:
        if config.head is not None and not 0 <= config.head < heads[layer]:
            raise InputError(f"layer {layer} of the model has heads 0..{heads[layer] - 1}, got {config.head}")
    chosen = [range(heads[layer]) if config.head is None else [config.head] for layer in layers]
    return [Options("head", layer, head, **common) for layer, own in zip(layers, chosen, strict=True) for head in own]


def identity_of(config: Config, block: Options, weights: str, token_ids: Sequence[int]) -> str:
    """A hash of all that defines a job's numbers."""
    defining = {
        "weights": weights,
        "token_ids": list(token_ids),
        "block": [block.kind, block.layer, block.head, block.norm, block.residual],
        "dtype": config.dtype,
        "vectors": config.vectors,
        "algorithm": ALGORITHM,
    }
    if not config.forms_jacobian:
        defining |= {"method": config.method, "k": config.k or DEFAULT_K}
    return hashlib.sha256(json.dumps(defining, sort_keys=True).encode()).hexdigest()
