"""float64 that stays float64: the casts to a lower precision in the code of many families are lifted.

Their norms, softmax and rotations compute in float32 whatever the input. That they no longer do is proved of every block by
finite differences (`blocks.check_by_differences`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from tightpass import doors
from tightpass.errors import InputError
from tightpass.models.sdpa import SDPA, differentiable

Function = Callable[[torch.Tensor], torch.Tensor]

CASTS = {torch.Tensor.to, torch.Tensor.type}
SOFTMAX = {torch.softmax, torch.Tensor.softmax, nn.functional.softmax}
SOFTMAX |= {torch.log_softmax, torch.Tensor.log_softmax, nn.functional.log_softmax}


NARROWER = {torch.Tensor.float: torch.float32, torch.Tensor.half: torch.float16, torch.Tensor.bfloat16: torch.bfloat16}
"""Casts by name, and to what."""


class Genuine(TorchFunctionMode):
    """Keeps tensors of a precision, float64 or float32, from going below it through `.to`, `.type`, `.float`, `.half`,
    `.bfloat16` and `softmax(dtype=)`. Those of a lower one pass as they are. Fused attention takes a path with derivatives."""

    def __init__(self, precision: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.precision = precision

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is SDPA:
            return differentiable(*args, **kwargs)
        if args and isinstance(args[0], torch.Tensor) and self._holds(args[0].dtype):
            if func in NARROWER:
                return args[0].to(self._lifted(NARROWER[func]))
            if func in CASTS:
                args = (args[0], *map(self._lifted, args[1:]))
                kwargs = {name: self._lifted(value) for name, value in kwargs.items()}
            elif func in SOFTMAX and kwargs.get("dtype") is not None:
                kwargs = kwargs | {"dtype": self._lifted(kwargs["dtype"])}
        return func(*args, **kwargs)

    def _holds(self, dtype: torch.dtype) -> bool:
        """Whether a precision is floating, and at least the one to be kept."""
        return dtype.is_floating_point and dtype.itemsize >= self.precision.itemsize

    def _lifted(self, given: Any) -> Any:
        """An argument of `.to`: a lower floating precision becomes the one to be kept, a tensor to be like its device."""
        if isinstance(given, torch.dtype):
            return self.precision if given.is_floating_point and not self._holds(given) else given
        if isinstance(given, torch.Tensor) and given.is_floating_point() and not self._holds(given.dtype):
            return given.device
        return given


def genuine(function: Function) -> Function:
    """The function in its input's own precision: what it casts below it inside, as norms and softmax of many models do to
    float32, is not. Weights are as they are: they must be in that precision too.

    Raises InputError for what is no function.
    """
    if not callable(function):
        raise InputError(f"genuine expects a function of a tensor, got {doors.shown(function)}")

    def computed(x: torch.Tensor) -> torch.Tensor:
        with Genuine(x.dtype):
            return function(x)

    return computed


@contextmanager
def genuine_inside(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Every call of one of the modules is genuine. What is called between them is not: tables of positions stay as they are
    handed to the layers."""
    modes: list[Genuine] = []

    def enter(*_: Any) -> None:
        modes.append(Genuine())
        modes[-1].__enter__()  # type: ignore[no-untyped-call]

    def leave(*_: Any) -> None:
        modes.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]

    handles = []
    for module in modules:
        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
