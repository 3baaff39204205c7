"""Linear maps as modules apply them, be it a Linear or an adapter around one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tightpass.errors import InputError


@dataclass(frozen=True)
class Affine:
    """x -> W·x + b, W (out, in)."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight, self.bias)

    def rows(self, which: Any) -> Affine:
        """Some of what it gives."""
        return Affine(self.weight[which], None if self.bias is None else self.bias[which])


def affine(module: nn.Module | None) -> Affine | None:
    """The map of a plain linear module, or of a Conv1D of transformers, which keeps its weight (in, out); None for any other."""
    if isinstance(module, nn.Linear) and is_plain_linear(module):
        return Affine(module.weight.detach(), None if module.bias is None else module.bias.detach())
    if module is not None and _is_conv1d(module):
        parameters: Any = module
        return Affine(parameters.weight.detach().T, parameters.bias.detach())
    return None


def _is_conv1d(module: nn.Module) -> bool:
    kind = type(module)
    return (
        kind.__name__ == "Conv1D"
        and kind.__module__ == "transformers.pytorch_utils"
        and "forward" not in vars(module)
        and not module._forward_hooks
        and not module._forward_pre_hooks
    )


def in_features(module: nn.Module) -> int:
    """What a linear map reads."""
    return _features(module, ("in_features", "nx"), "input")


def out_features(module: nn.Module) -> int:
    """What a linear map gives."""
    return _features(module, ("out_features", "nf"), "output")


def _features(module: nn.Module, names: tuple[str, str], side: str) -> int:
    """As a Linear names it, or a Conv1D of transformers."""
    inner: Any = module
    while inner is not None:
        for name in names:
            if hasattr(inner, name):
                return int(getattr(inner, name))
        inner = getattr(inner, "base_layer", None)
    raise InputError(f"cannot tell how wide the {side} of {type(module).__name__} is (no {names[0]})")


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
