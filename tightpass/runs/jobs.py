"""A question -> its jobs: one block of one text each, as plain data that any process can be handed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from tightpass.errors import InputError
from tightpass.evidence.leading import DEFAULT_K
from tightpass.models.options import Options, check_attends, check_options, layers_with
from tightpass.models.shape import Shape
from tightpass.runs.question import Config, parse_layers

ALGORITHM = 9
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
    places = _places(config, shape)
    listed = [Options(config.block, layer, head, config.norm, config.residual) for layer, head in places]
    for block in listed:
        check_options(shape, block, config.model)
    return listed


def layers_of(listed: Sequence[Options]) -> list[int] | None:
    """The layers that blocks are of; None where one of them is of all."""
    found = {block.layer for block in listed}
    return None if None in found else sorted(layer for layer in found if layer is not None)


def _places(config: Config, shape: Shape) -> list[tuple[int | None, int | None]]:
    """Layer and head of each; of block `head` all heads, unless one is asked for. `all` layers are those that have such a block."""
    if config.block == "model":
        if config.layers.strip() != "all":
            raise InputError("--layers does not apply to --block model, which is all layers at once")
        return [(None, config.head)]
    layers = parse_layers(config.layers, len(shape.layers))
    if config.layers.strip() == "all":
        layers = layers_with(shape, config.block) or layers
    if config.block != "head" or config.head is not None:
        return [(layer, config.head) for layer in layers]
    for layer in layers:
        check_attends(shape, layer)
    return [(layer, head) for layer in layers for head in range(shape.layers[layer].heads)]


def identity_of(
    config: Config, block: Options, weights: str, token_ids: Sequence[int], signal: str | None = None
) -> str:
    """A hash of all that defines a job's numbers; `signal` is that of what a model reads that reads no text."""
    defining = {
        "weights": weights,
        "token_ids": list(token_ids),
        "block": [block.kind, block.layer, block.head, block.norm, block.residual],
        "dtype": config.dtype,
        "vectors": config.vectors,
        "algorithm": ALGORITHM,
    }
    if signal is not None:
        defining["signal"] = signal
    if not config.forms_jacobian:
        defining |= {"method": config.method, "k": config.k or DEFAULT_K}
    return hashlib.sha256(json.dumps(defining, sort_keys=True).encode()).hexdigest()
