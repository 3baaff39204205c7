"""What every module of interest received and returned in one ordinary forward pass.

Blocks are differentiated at captured inputs with captured arguments, so that mask,
position and embedding code stay outside of `torch.func`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tightpass.models.families import LayerParts, layer_parts
from tightpass.models.loading import Model


@dataclass(frozen=True)
class Call:
    """One call of a module: first argument, the rest, and the first output."""

    x: torch.Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    y: torch.Tensor

    def to(self, dtype: torch.dtype) -> Call:
        """The same call with its floating tensors in another precision."""
        return Call(
            cast(self.x, dtype),
            tuple(cast(a, dtype) for a in self.args),
            {k: cast(v, dtype) for k, v in self.kwargs.items()},
            cast(self.y, dtype),
        )


def cast(value: Any, dtype: torch.dtype) -> Any:
    """A floating tensor in another precision, clamped to its range (masks hold its minimum)."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        if torch.finfo(dtype).max < torch.finfo(value.dtype).max:
            value = value.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max)
        return value.to(dtype)
    if isinstance(value, tuple):
        return tuple(cast(v, dtype) for v in value)
    return value


def first(output: Any) -> torch.Tensor:
    """The hidden states of a module's output, which may be a tuple."""
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


@contextmanager
def record(modules: dict[str, nn.Module], calls: dict[str, Call]) -> Iterator[None]:
    """Fills `calls` with the last call of each module while the context is open.

    `modules` maps labels to modules; inputs and outputs are cloned, since some families
    add to them in place.
    """
    pending: dict[str, tuple[torch.Tensor, tuple[Any, ...], dict[str, Any]]] = {}
    handles = []

    def before(label: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if args:
                pending[label] = (args[0].detach().clone(), args[1:], kwargs)
            else:
                rest = dict(kwargs)
                pending[label] = (rest.pop("hidden_states").detach().clone(), (), rest)

        return hook

    def after(label: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            x, args, kwargs = pending[label]
            calls[label] = Call(x, args, kwargs, first(output).detach().clone())

        return hook

    for label, module in modules.items():
        handles.append(module.register_forward_pre_hook(before(label), with_kwargs=True))
        handles.append(module.register_forward_hook(after(label)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Captured:
    """The calls of every layer's parts, by "INDEX.part", and of the final norm."""

    model: Model
    parts: tuple[LayerParts, ...]
    calls: dict[str, Call]
    final_norm: nn.Module | None

    def call(self, layer: int, part: str) -> Call:
        return self.calls[f"{layer}.{part}"]


RECORDED = ("layer", "context", "projection", "attn_norm", "mlp_norm", "up", "down")


def capture(model: Model, ids: torch.Tensor) -> Captured:
    """Runs the model once on token ids (T,) and keeps every layer's calls."""
    parts = tuple(layer_parts(layer, model.family, model.config) for layer in model.layers)
    modules = {
        f"{index}.{name}": module
        for index, piece in enumerate(parts)
        for name in RECORDED
        if (module := getattr(piece, name)) is not None
    }
    if model.final_norm is not None:
        modules["final_norm"] = model.final_norm
    calls: dict[str, Call] = {}
    with torch.no_grad(), record(modules, calls):
        model.base(input_ids=ids[None].to(model.device), use_cache=False)
    return Captured(model, parts, calls, model.final_norm)
