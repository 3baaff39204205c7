"""What every module of interest received and returned in one ordinary forward pass.

Blocks are differentiated at captured inputs with captured arguments, so that mask,
position and embedding code stay outside of `torch.func`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tightpass.errors import InputError, TightpassError, VerificationError
from tightpass.models import attention
from tightpass.models.genuine import genuine_inside
from tightpass.models.loading import Model
from tightpass.models.parts import LayerParts
from tightpass.models.shape import Shape
from tightpass.work import Work, kept, passing


@dataclass(frozen=True)
class Call:
    """One call of a module: first argument, the rest, and the first output."""

    x: torch.Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    y: torch.Tensor

    @property
    def rotary(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Cosines and sines (T, r) that an attention was called with, which transformers hands over as (1, T, r)."""
        given = self.kwargs.get("position_embeddings")
        if given is None:
            return None
        cos, sin = (part.reshape(part.shape[-2:]) for part in given)
        return cos, sin

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
    """Fills `calls`, once the context is left, with the call that each label means.

    `modules` maps labels such as "3.up" to modules, in the order of the layers; inputs and outputs are cloned, since
    some families add to them in place. A module that several layers share is called once for each of them, in their
    order. Raises InputError for any other number of calls, because it is not known then which one is meant.
    """
    labels: dict[nn.Module, list[str]] = {}
    for label, module in modules.items():
        labels.setdefault(module, []).append(label)
    made: dict[nn.Module, list[Call]] = {module: [] for module in labels}
    pending: dict[nn.Module, tuple[torch.Tensor, tuple[Any, ...], dict[str, Any]]] = {}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args:
            pending[module] = (args[0].detach().clone(), args[1:], kwargs)
        else:
            rest = dict(kwargs)
            pending[module] = (rest.pop("hidden_states").detach().clone(), (), rest)

    def after(module: nn.Module, _args: Any, output: Any) -> None:
        made[module].append(Call(*pending.pop(module), first(output).detach().clone()))

    handles = []
    for module in labels:
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    for module, meant in labels.items():
        calls.update(zip(meant, _one_each(meant, made[module]), strict=True))


def _one_each(labels: list[str], made: list[Call]) -> list[Call]:
    """For each label of one module the call that it means: one for every layer that has the module."""
    layers = list(dict.fromkeys(label.partition(".")[0] for label in labels))
    if len(made) != len(layers):
        raise InputError(
            f"the module of {', '.join(labels)} was called {len(made)} times in one forward pass, expected {len(layers)}: "
            "it is not known which call a block means.\nGive each place, or each part of a chunked layer, a module of its own"
        )
    return [made[layers.index(label.partition(".")[0])] for label in labels]


@dataclass(frozen=True)
class Captured:
    """The calls of every layer's parts, by "INDEX.part", and of the final norm."""

    model: Model
    parts: tuple[LayerParts, ...]
    calls: dict[str, Call]
    final_norm: nn.Module | None

    def call(self, layer: int, part: str) -> Call:
        return self.calls[f"{layer}.{part}"]


def _recorded(parts: Sequence[LayerParts], wanted: Collection[int] | None) -> Collection[int]:
    """The layers that are recorded: of modules that several layers share, all, to know whose call each is."""
    shared = len({part.layer for part in parts}) < len(parts)
    return range(len(parts)) if wanted is None or shared else sorted(wanted)


def work_of(shape: Shape, tokens: int, itemsize: int, wanted: Collection[int]) -> Work:
    """Of `capture`: inputs and outputs of the wanted layers, and the scores of one layer as they become weights."""
    heads = shape.widest.heads
    calls = sum(tokens * (12 * shape.width + 2 * shape.layers[i].d_ff) for i in wanted)
    return kept(calls * itemsize).then(passing(3 * heads * tokens**2 * itemsize))


def capture(model: Model, given: torch.Tensor, wanted: Collection[int] | None = None) -> Captured:
    """Runs the model once and keeps the wanted layers' calls, or those of all, in the model's own precision.

    given   token ids (T,), or what a model reads that reads no text, such as pixels (channels, height, width)

    Raises VerificationError where this package's attention is not the model's.
    """
    modules: dict[str, nn.Module] = {}
    for index in _recorded(model.parts, wanted):
        parts = model.parts[index]
        modules[f"{index}.layer"] = parts.layer
        modules |= {f"{index}.{name}": module for name, module in parts.items(recorded=True)}
    if model.final_norm is not None:
        modules["final_norm"] = model.final_norm
    calls: dict[str, Call] = {}
    layers = [parts.layer for parts in model.parts]
    inside = layers if model.final_norm is None else [*layers, model.final_norm]
    turns = nullcontext() if model.streamed is None else model.streamed.in_turn()
    with torch.no_grad(), turns, attention.proved(), genuine_inside(dict.fromkeys(inside)), record(modules, calls):
        try:
            model.base(**_arguments(model, given))
        except (torch.OutOfMemoryError, TightpassError):
            raise
        except (RuntimeError, IndexError, ValueError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"the forward pass of {model.name} fails at {_shown(model, given)}: {reason}") from error
    _check_tokens(model, given, next(call.x for label, call in calls.items() if label.endswith(".layer")))
    return Captured(model, model.parts, calls, model.final_norm)


def _arguments(model: Model, given: torch.Tensor) -> dict[str, Any]:
    """Of a forward pass of one input."""
    if model.shape.reads is None:
        return {"input_ids": given[None].to(model.device), "use_cache": False}
    return {model.shape.reads.name: given[None].to(model.device, model.dtype)}


def _shown(model: Model, given: torch.Tensor) -> str:
    """What a forward pass was given, in words."""
    reads = model.shape.reads
    return f"these {len(given)} tokens" if reads is None else f"{reads.name} of shape {tuple(given.shape)}"


def _check_tokens(model: Model, given: torch.Tensor, x: torch.Tensor) -> None:
    """Raises VerificationError where an input that is no text makes another number of tokens than the family's row says."""
    reads = model.shape.reads
    if reads is not None and reads.tokens(tuple(given.shape)) != x.shape[-2]:
        raise VerificationError(
            f"{model.name} makes {x.shape[-2]} tokens of {_shown(model, given)}, its family's row says "
            f"{reads.tokens(tuple(given.shape))}"
        )
