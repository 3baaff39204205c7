"""A function once more in the other precision, where it lets that be; and whether it computes where nobody sees it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tightpass.jacobians.autodiff import Function, Linearisation
from tightpass.jacobians.diagnose import narrowed
from tightpass.models.sdpa import followable

OTHER = {torch.float32: torch.float64, torch.float64: torch.float32}
ALIKE = 1e-2
"""Relative difference of its values in both precisions up to which it is the same function."""


def otherwise(fn: Function, whole: Linearisation) -> Linearisation | None:
    """`fn`, as it was handed in, at x in the other precision, with a module's weights in that; None where it fails there, computes in
    float32 for all that, or gives something else."""
    dtype = OTHER[whole.x.dtype]
    other = followable(copy.deepcopy(fn).to(dtype) if isinstance(fn, nn.Module) else fn)
    x = whole.x.to(dtype)
    try:
        with torch.no_grad():
            y = other(x.clone())
        if not isinstance(y, torch.Tensor) or y.dtype != dtype or y.shape != whole.y.shape:
            return None
        if dtype == torch.float64 and narrowed(other, x):
            return None
    except Exception:  # a user's function may raise anything
        return None
    apart = (y.double() - whole.y.double()).norm()
    alike = bool(apart <= ALIKE * whole.y.double().norm())
    return Linearisation(other, x, whole.columns) if alike else None


def hides(whole: Linearisation) -> bool:
    """Whether some of it is computed outside of torch, as in NumPy, or by operations that are not torch's own: their rounding is
    not seen, and cannot be perturbed."""
    leaving, foreign = _Leaving(), _Foreign()
    with torch.no_grad(), foreign, leaving:
        whole.fn(whole.x.clone())
    return leaving.seen or foreign.seen


class _Leaving(TorchFunctionMode):
    """Whether values leave torch."""

    LEAVING = frozenset({"item", "tolist", "numpy", "__float__", "__array__", "__dlpack__"})

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = self.seen or getattr(func, "__name__", "") in self.LEAVING
        return func(*args, **(kwargs or {}))


class _Foreign(TorchDispatchMode):
    """Whether an operation is of another library."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = self.seen or func.namespace not in ("aten", "prim", "prims")
        return func(*args, **(kwargs or {}))
