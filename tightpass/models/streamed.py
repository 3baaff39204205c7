"""Models larger than memory: their weights stay in the files, and each layer's are read when it is their turn."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tightpass.models.families.base import Family
from tightpass.models.parts import LayerParts, parts_of, token_embedding
from tightpass.models.shape import Shape
from tightpass.models.skeleton import Weights, empty, fill, places
from tightpass.work import Work, passing

CHUNK = 2**23
"""Numbers of a weight that are read at once where only their bytes are wanted."""


@dataclass(frozen=True)
class Streamed:
    """A base model on the meta device, but for what lies outside of its layers and of its token embedding."""

    base: nn.Module
    family: Family
    weights: Weights
    device: torch.device

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Inside, each layer has its weights while it is called, and the embedding the rows that it is asked for."""
        embedding = token_embedding(self.base)
        with ExitStack() as stack:
            if embedding is not None:
                stack.enter_context(self._by_rows(embedding))
            for layer in dict.fromkeys(parts.layer for parts in parts_of(self.base, self.family)):
                stack.callback(layer.register_forward_pre_hook(self._filled).remove)
                stack.callback(layer.register_forward_hook(_emptied, always_call=True).remove)
            yield

    def held(self, parts: LayerParts) -> LayerParts:
        """A copy of a layer with its weights, for as long as anybody needs it."""
        layer = copy.deepcopy(parts.layer)
        fill(layer, self._prefix(parts.layer), self.weights, self.device)
        return parts.inside(layer)

    def pieces(self, key: str) -> Iterator[torch.Tensor]:
        """A weight in the model's precision, a stretch of rows after the other."""
        here = places(self.base)[key]
        if not here.is_meta:
            yield here.detach()
            return
        name, rows = self._stored(key), max(1, CHUNK // max(1, here[0].numel()))
        for first in range(0, len(here), rows):
            yield self.weights.read(name, range(first, min(first + rows, len(here)))).to(here.dtype)

    def _stored(self, key: str) -> str:
        """The name under which the files have a weight: its own, or one of what it is tied to."""
        held = places(self.base)
        tied = (other for other, tensor in held.items() if tensor is held[key])
        return next(other for other in itertools.chain([key], tied) if other in self.weights.shapes)

    def _prefix(self, module: nn.Module) -> str:
        paths: Iterator[str] = (path for path, own in self.base.named_modules() if own is module)
        return next(paths) + "."

    def _filled(self, layer: nn.Module, _args: Any) -> None:
        fill(layer, self._prefix(layer), self.weights, self.device)

    @contextmanager
    def _by_rows(self, embedding: nn.Embedding) -> Iterator[None]:
        """Inside, the embedding has the rows of the ids of each call alone, and gets their places among those instead of them."""
        name = self._stored(self._prefix(embedding) + "weight")
        whole, padding = embedding.weight, embedding.padding_idx

        def only(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            wanted, among = torch.unique(args[0], return_inverse=True)
            rows = self.weights.read(name, wanted.tolist()).to(self.device, whole.dtype, copy=True)
            embedding.weight = nn.Parameter(rows, requires_grad=False)
            return (among, *args[1:])

        hook = embedding.register_forward_pre_hook(only)
        embedding.padding_idx = None  # of training: here it may lie beyond the rows
        try:
            yield
        finally:
            hook.remove()
            embedding.weight, embedding.padding_idx = whole, padding


def _emptied(module: nn.Module, *_: Any) -> None:
    empty(module)


def streamed(base: nn.Module, family: Family, weights: Weights, device: torch.device) -> Streamed:
    """A skeleton, what lies outside of its layers filled: positions, norms and their like."""
    embedding = token_embedding(base)
    left = {id(p) for parts in parts_of(base, family) for p in parts.layer.parameters()}
    fill(base, "", weights, device, leave=left if embedding is None else left | {id(embedding.weight)})
    for module in base.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    return Streamed(base, family, weights, device)


def kept_bytes(shape: Shape, tokens: int, itemsize: int) -> int:
    """Of what stays of a streamed model: all but its layers, and of its token embedding the rows of the tokens."""
    return (shape.outside + tokens * shape.width) * itemsize


def work_of_turns(shape: Shape, itemsize: int) -> Work:
    """Of the layers, as the turn of each comes: its weights, and one of them once more as it is read."""
    return passing((shape.largest_layer + shape.largest_weight) * itemsize)


def work_of_held(shape: Shape, itemsize: int) -> Work:
    """Of the layer that a block is made of, likewise."""
    return Work(0.0, (shape.largest_layer + shape.largest_weight) * itemsize, shape.largest_layer * itemsize)
