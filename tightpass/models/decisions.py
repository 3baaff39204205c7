"""What a function decides at a point: which experts a router takes, which numbers a clamp cuts off.

J is that of what is decided: it is smooth in between, and another one where a decision falls otherwise. Decisions are noted
as the model's own code makes them, in the order of its calls, and can be held while it is computed again elsewhere or in
another precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol

import torch
from torch.overrides import TorchFunctionMode

from tightpass.errors import VerificationError

Function = Callable[[torch.Tensor], torch.Tensor]


class Decision(Protocol):
    @property
    def values(self) -> torch.Tensor:
        """What it was made of; the first axis is most often that of the tokens."""

    def again(self, values: torch.Tensor) -> Any:
        """What the function gives of other values when it decides alike."""

    def within(self, error: float) -> torch.Tensor:
        """Where it would be another one, of the shape of the values less what it chose from, if values were off by so much."""


@dataclass(frozen=True)
class Choice:
    """The largest `count` of the last axis."""

    values: torch.Tensor
    count: int
    indices: torch.Tensor

    def again(self, values: torch.Tensor) -> Any:
        return torch.return_types.topk((values.gather(-1, self.indices), self.indices))

    def of(self, tokens: slice) -> Choice:
        """That of some tokens alone."""
        return Choice(self.values[tokens], self.count, self.indices[tokens])

    def within(self, error: float) -> torch.Tensor:
        ranked = self.values.sort(-1, descending=True).values
        if self.count == ranked.shape[-1]:
            return torch.zeros(ranked.shape[:-1], dtype=torch.bool, device=ranked.device)
        return ranked[..., self.count - 1] - ranked[..., self.count] <= 2 * error


@dataclass(frozen=True)
class Clamp:
    """Numbers cut off below `low` and above `high`."""

    values: torch.Tensor
    low: float
    high: float

    def again(self, values: torch.Tensor) -> torch.Tensor:
        below_high = torch.where(self.values > self.high, self.high, values)
        return torch.where(self.values < self.low, self.low, below_high)

    def within(self, error: float) -> torch.Tensor:
        return ((self.values - self.low).abs() <= error) | ((self.values - self.high).abs() <= error)


def _choice(out: Any, values: torch.Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Choice:
    if dim not in (-1, values.ndim - 1) or not largest:
        raise VerificationError("a router that takes the smallest, or not of the last axis, is not known")
    return Choice(values, k, out[1])


def _clamp(out: Any, values: torch.Tensor, min: Any = None, max: Any = None) -> Clamp:  # as torch names them
    low, high = float("-inf") if min is None else min, float("inf") if max is None else max
    return Clamp(values, float(low), float(high))


MAKERS: dict[Any, Callable[..., Any]] = {
    torch.topk: _choice,
    torch.Tensor.topk: _choice,
    torch.clamp: _clamp,
    torch.Tensor.clamp: _clamp,
    torch.Tensor.clamp_: _clamp,
}
IN_PLACE = {torch.Tensor.clamp_}


class Deciding(TorchFunctionMode):
    """Notes in `made` every decision inside, in the order of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Decision] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not _decides(func, args):
            return func(*args, **kwargs)
        values = args[0].detach().clone()  # it may be cut off in place
        out = func(*args, **kwargs)
        self.made.append(MAKERS[func](out, values, *args[1:], **kwargs))
        return out


class Holding(TorchFunctionMode):
    """Lets decisions inside fall as those given did, one after the other; any beyond them fall as they will."""

    def __init__(self, held: Sequence[Decision]) -> None:
        super().__init__()
        self.left = iter(held)

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not _decides(func, args):
            return func(*args, **kwargs)
        held = next(self.left, None)
        if held is None:
            return func(*args, **kwargs)
        if held.values.shape != args[0].shape:
            raise VerificationError(
                "the model decides on other numbers when it is called again: it is not a function of x"
            )
        again = held.again(args[0])
        return args[0].copy_(again) if func in IN_PLACE else again


def _decides(func: Any, args: tuple[Any, ...]) -> bool:
    """Whole numbers, such as positions, are not asked."""
    return func in MAKERS and bool(args) and bool(args[0].is_floating_point())


def decided(function: Function, x: torch.Tensor, held: Sequence[Decision] | None = None) -> tuple[Decision, ...]:
    """What a function decides at x; or what it decides it of, where decisions are held."""
    noting = Deciding()
    with torch.no_grad(), nullcontext() if held is None else Holding(held), noting:
        function(x)
    return tuple(noting.made)


def holding(function: Function, held: Sequence[Decision]) -> Function:
    """The function with its decisions held: smooth in x."""

    def computed(x: torch.Tensor) -> torch.Tensor:
        with Holding(held):
            return function(x)

    return computed


def experts_of(decisions: Sequence[Decision], tokens: slice) -> list[Choice]:
    """The experts that some tokens go to, of decisions that begin with such; what follows is left open."""
    first = takewhile(lambda decision: isinstance(decision, Choice), decisions)
    return [choice.of(tokens) for choice in first if isinstance(choice, Choice)]
