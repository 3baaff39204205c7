"""How far rounding moves what torch computes: the same computation, each operation's result a rounding off.

Rounding is seen where it happens, at the size of the intermediates, whatever cancels later (Monte Carlo arithmetic, Parker
1997). Something computed in a lower precision inside is off by far more than this predicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

Tensor = torch.Tensor
DRAWS = 3
EXACT = frozenset((
    "amax", "amin", "max", "min", "clone", "_to_copy", "where", "cat", "stack", "repeat",
    "index", "index_select", "gather", "neg", "abs", "relu", "threshold", "zeros", "ones", "full",
    "zeros_like", "ones_like", "full_like", "new_zeros", "new_full", "new_empty", "empty", "empty_like", "arange", "copy_", "fill_", "zero_"
))  # fmt: skip
"""Operations that move numbers, or choose among them, without rounding."""
SUMS = frozenset(
    (
        "mm",
        "addmm",
        "bmm",
        "baddbmm",
        "mv",
        "dot",
        "sum",
        "mean",
        "var",
        "var_mean",
        "cumsum",
        "linalg_vector_norm",
        "native_layer_norm",
        "native_layer_norm_backward",
        "_softmax_backward_data",
    )
)
"""Operations that add up inside: what they round is as large as their terms."""


class Perturbed(TorchDispatchMode):
    """Operations in one precision are off by a rounding of it, up or down at random."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.unit = dtype, torch.finfo(dtype).eps
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        aliases = [value.alias_info for value in func._schema.returns if value.alias_info is not None]
        if name in SUMS:
            args = tuple(self._off(value) for value in args)
        out = func(*args, **kwargs)
        if name in EXACT or any(not alias.is_write for alias in aliases):  # views round nothing
            return out
        return out.copy_(self._off(out)) if aliases else self._off(out)

    def _off(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(self._off(part) for part in value)
        if not isinstance(value, Tensor) or value.dtype != self.dtype or value._is_zerotensor():
            return value
        signs = torch.randint(0, 2, value.shape, generator=self.generator, dtype=torch.int8).to(value.device)
        moved = value * (1 + (2 * signs - 1).to(value.dtype) * self.unit)
        return torch.where(moved.isfinite(), moved, value)  # the lowest number of a mask stays


def rounding(product: Callable[[], Tensor], dtype: torch.dtype) -> float:
    """‖change‖₂ of what `product` computes in `dtype`, the largest of a few draws; infinite where one is not finite."""
    plain, changes = product().double(), []
    for seed in range(DRAWS):
        with Perturbed(dtype, seed):
            moved = product()
        changes.append(float((moved.double() - plain).norm()))
    return max(change if math.isfinite(change) else math.inf for change in changes)
