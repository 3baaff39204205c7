"""A model without its weights, and the weights put in: of all of it, or of one module."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook


class Weights(Protocol):
    """A model's weights by its own names for them.

    shapes   of those that the files have
    beyond   names of what they have besides, which the model has no place for
    """

    shapes: dict[str, tuple[int, ...]]
    beyond: list[str]

    def read(self, key: str, rows: Sequence[int] | None = None) -> torch.Tensor:
        """One of them, or some of its rows, no less precise than it is stored."""
        ...


@contextmanager
def without_numbers() -> Iterator[None]:
    """Inside, the parameters of new modules are on the meta device; their buffers are computed as always."""
    hook = register_module_parameter_registration_hook(_on_meta)
    try:
        yield
    finally:
        hook.remove()


def _on_meta(module: nn.Module, name: str, parameter: Any) -> Any:
    """None keeps what is there: what is registered twice stays one and the same."""
    return None if parameter is None or parameter.is_meta else _meta(parameter)


def _meta(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().to("meta"), requires_grad=False)


def places(root: nn.Module) -> dict[str, torch.Tensor]:
    """What a module keeps under which names, tied parameters under each of theirs."""
    return dict(root.state_dict(keep_vars=True))


def tied(root: nn.Module) -> list[tuple[torch.Tensor, list[str]]]:
    """What a module keeps, each once, with all its names."""
    found: dict[int, tuple[torch.Tensor, list[str]]] = {}
    for key, tensor in places(root).items():
        found.setdefault(id(tensor), (tensor, []))[1].append(key)
    return list(found.values())


def put(root: nn.Module, keys: Sequence[str], tensor: torch.Tensor) -> None:
    """Puts one tensor in the place of what a module keeps under some names."""
    for key in keys:
        path, _, leaf = key.rpartition(".")
        setattr(root.get_submodule(path), leaf, tensor)


def compared(root: nn.Module, weights: Weights) -> dict[str, Any]:
    """What a model and its files do not have in common, in the words of transformers."""
    parameters = [(tuple(t.shape), keys) for t, keys in tied(root) if isinstance(t, nn.Parameter)]
    stored = weights.shapes
    return {
        "missing_keys": [keys[0] for _, keys in parameters if not any(key in stored for key in keys)],
        "unexpected_keys": weights.beyond,
        "mismatched_keys": [
            (key, stored[key], shape) for shape, keys in parameters for key in keys if stored.get(key, shape) != shape
        ],
    }


def fill(module: nn.Module, prefix: str, weights: Weights, device: torch.device, leave: Collection[int] = ()) -> None:
    """Puts the weights into a module that lies at `prefix` (with its dot), in the precision that it has.

    What the files do not have, which no hidden state passes through, is zero.

    leave   ids of parameters that are left on the meta device
    """
    for tensor, keys in tied(module):
        key = next((prefix + key for key in keys if prefix + key in weights.shapes), None)
        if not isinstance(tensor, nn.Parameter):
            if key is not None:
                put(module, keys, weights.read(key).to(device, tensor.dtype, copy=True))
        elif tensor.is_meta and id(tensor) not in leave:
            full = torch.zeros_like(tensor, device=device) if key is None else _read(weights, key, tensor.dtype, device)
            put(module, keys, nn.Parameter(full, requires_grad=False))


def _read(weights: Weights, key: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A copy of its own: what was read may be a map of the file."""
    return weights.read(key).to(device, dtype, copy=True).contiguous()


def empty(module: nn.Module) -> None:
    """Takes a module's weights out again."""
    for tensor, keys in tied(module):
        if isinstance(tensor, nn.Parameter) and not tensor.is_meta:
            put(module, keys, _meta(tensor))
