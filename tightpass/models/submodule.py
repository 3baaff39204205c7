"""Any module of a model by its path: a function of its first argument, at what it was given in a forward pass.

For models that no row of the table knows, and for modules that are no block. Nothing is known of what is inside, so that all
is left to automatic differentiation, and to what is looked for in any function.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from tightpass import doors
from tightpass.errors import DoesNotFitError, InputError, TightpassError
from tightpass.models.families.base import said_positions
from tightpass.models.genuine import genuine, genuine_inside
from tightpass.models.given import refuse_unusable, unwrapped
from tightpass.models.loading import Model, tokenizer_at
from tightpass.structure import Structure

Function = Callable[[torch.Tensor], torch.Tensor]

AGAIN = 1e4
"""Rounding units by which a module may differ from itself when it is called again."""


@dataclass(frozen=True)
class ModuleBlock:
    """A module as a map x -> y of (tokens, width) tensors, its other arguments held as they were captured.

    structure   claimed by the caller, and probed before it is used; None for none
    """

    name: str
    x: torch.Tensor
    structure: Structure | None
    function: Function

    @property
    def tokens(self) -> int:
        return self.x.shape[0]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """y (tokens, width) at any x of the captured shape. Raises InputError for another shape or precision."""
        if not isinstance(x, torch.Tensor) or x.shape != self.x.shape or x.dtype != self.x.dtype:
            got = f"{tuple(x.shape)}, {x.dtype}" if isinstance(x, torch.Tensor) and not x.is_nested else doors.shown(x)
            raise InputError(f"{self.name} expects a {tuple(self.x.shape)} tensor of {self.x.dtype}, got {got}")
        return self.function(x)


@dataclass(frozen=True)
class Whole:
    """A model, and what there is to read a text with."""

    name: str
    base: nn.Module
    positions: int | None
    vocabulary: int
    tokenizer: Any | None

    @property
    def reads(self) -> str:
        """The name of its input, such as input_ids."""
        return str(getattr(self.base, "main_input_name", "input_ids"))


def whole_of(model: Any) -> Whole:
    """Of a model that was loaded here, or of any other, of which a copy in float64 is made.

    Raises InputError for what is no model, in train mode, quantised or without numbers.
    """
    if isinstance(model, Model):
        if model.streamed is not None:
            raise DoesNotFitError(f"a module by its path needs all of {model.name} in memory; give more memory")
        return Whole(model.name, model.base, model.positions, model.vocabulary, model.tokenizer)
    given = unwrapped(model)
    refuse_unusable(given)
    config: Any = getattr(given, "config", None)
    if config is None:
        raise InputError(
            f"expected a Hugging Face model, got {type(given).__name__}; of a module alone: jacobian(fn, x)"
        )
    base = copy.deepcopy(given).double().requires_grad_(False)
    path, words = str(config.name_or_path or ""), getattr(config, "vocab_size", 0)
    return Whole(path or type(given).__name__, base, said_positions(given), int(words), tokenizer_at(path, config))


def module_block(whole: Whole, path: str, given: torch.Tensor, structure: Structure | None = None) -> ModuleBlock:
    """The module at a path, at what it is given when the model reads `given`: token ids (T,), or its pixels or features.

    Raises InputError for a path that is not there, a module that is not called once, or is no map of (tokens, width) tensors.
    """
    module = module_at(whole.base, path)
    call = _only(_calls(whole, module, given), path, whole.name)
    x, y = _found(call.x, path, "reads"), _found(call.y, path, "gives")
    if len(y) != len(x):
        raise InputError(f"{path} makes {len(y)} tokens of {len(x)}; a block gives as many as it reads")
    function = genuine(call.function(module))
    with torch.no_grad():
        apart = float((function(x) - y).abs().max())
    if not apart <= AGAIN * torch.finfo(y.dtype).eps * float(y.abs().max()):
        raise InputError(
            f"{path} gives something else when it is called again (by {apart:.1e}): it is no function of x"
        )
    return ModuleBlock(path, x, structure, function)


def module_at(base: nn.Module, path: str) -> nn.Module:
    """The module at a path, from the model as it is, or with or without its head. Raises InputError, with the nearest paths."""
    if not isinstance(path, str):
        raise InputError(f"module must be a path such as 'layers.0.mlp', got {doors.shown(path)}")
    known: dict[str, nn.Module] = dict(base.named_modules())
    prefix = f"{getattr(base, 'base_model_prefix', '')}."
    for name in (path, path.removeprefix(prefix), prefix + path):
        if name and name in known:
            return known[name]
    near = difflib.get_close_matches(path, filter(None, known), n=3, cutoff=0)
    raise InputError(f"{type(base).__name__} has no module {doors.shown(path)}; nearest: {', '.join(near)}")


@dataclass(frozen=True)
class _Call:
    """One call of a module.

    place    where its first tensor is: an index of `args`, or a key of `kwargs`
    x, y     that tensor, and the first of what it gave; None where there is none
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: int | str | None
    y: torch.Tensor | None

    @property
    def x(self) -> torch.Tensor | None:
        if self.place is None:
            return None
        found: torch.Tensor = self.args[self.place] if isinstance(self.place, int) else self.kwargs[self.place]
        return found

    def function(self, module: nn.Module) -> Function:
        """The module of its first tensor, (tokens, width) -> (tokens, width); all else stays as it was."""
        place, like = self.place, self.x
        assert like is not None

        def apply(x: torch.Tensor) -> torch.Tensor:
            fed = x.reshape(like.shape)
            if isinstance(place, int):
                output = module(*self.args[:place], fed, *self.args[place + 1 :], **self.kwargs)
            else:
                output = module(*self.args, **self.kwargs | {str(place): fed})
            y = _first(output)
            assert y is not None
            return y[0] if y.ndim == 3 else y

        return apply


def _calls(whole: Whole, module: nn.Module, given: torch.Tensor) -> list[_Call]:
    """Every call of a module in one forward pass."""
    made: list[_Call] = []
    fed: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        fed.append(tree_map_only(torch.Tensor, _copied, (args, kwargs)))

    def after(_: nn.Module, _args: Any, output: Any) -> None:
        args, kwargs = fed.pop()
        placed: list[tuple[Any, Any]] = [*enumerate(args), *kwargs.items()]
        place = next((at for at, value in placed if isinstance(value, torch.Tensor)), None)
        y = _first(output)
        made.append(_Call(args, kwargs, place, None if y is None else _copied(y)))

    inside = [layer for listed in whole.base.modules() if isinstance(listed, nn.ModuleList) for layer in listed]
    with torch.no_grad(), genuine_inside(dict.fromkeys([*inside, module])):
        handles = [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after),
        ]
        try:
            _forward(whole, given)
        finally:
            for handle in handles:
                handle.remove()
    return made


def _copied(value: torch.Tensor) -> torch.Tensor:
    """As it was: some models add to their tensors in place."""
    return value.detach().clone()


def _forward(whole: Whole, given: torch.Tensor) -> None:
    """Raises InputError where it fails."""
    config: Any = whole.base.config
    some = next(whole.base.parameters())
    given = given.to(some.device, some.dtype) if given.is_floating_point() else given.to(some.device)
    options = {"use_cache": False} if hasattr(config, "use_cache") else {}
    try:
        whole.base(**{whole.reads: given[None]}, **options)
    except (torch.OutOfMemoryError, TightpassError):
        raise
    except Exception as error:  # a model of any kind may raise anything
        reason = " ".join(str(error).split())[:200]
        half = "; of an encoder with a decoder give one half, such as model.get_encoder()"
        how = half if getattr(config, "is_encoder_decoder", False) else ""
        raise InputError(f"the forward pass of {whole.name} fails: {reason}{how}") from error


def _only(made: list[_Call], path: str, name: str) -> _Call:
    """Raises InputError unless there was one call."""
    if not made:
        raise InputError(f"{path} is never called in a forward pass of {name}; give the path of a module that is")
    if len(made) > 1:
        raise InputError(
            f"{path} is called {len(made)} times in a forward pass of {name}: it is not known which call is meant; "
            "give the path of what calls it"
        )
    return made[0]


def _found(tensor: torch.Tensor | None, path: str, does: str) -> torch.Tensor:
    """As (tokens, width). Raises InputError for no floating tensor of that kind."""
    if tensor is None or not tensor.is_floating_point():
        what = "no tensor" if tensor is None else f"whole numbers ({tensor.dtype})"
        raise InputError(f"{path} {does} {what}, expected a floating tensor: it has no Jacobian")
    if tensor.ndim == 3 and len(tensor) == 1:
        return tensor[0]
    if tensor.ndim != 2:
        raise InputError(
            f"{path} {does} a tensor of shape {tuple(tensor.shape)}, expected (1, tokens, width) or (tokens, width)"
        )
    return tensor


def _first(output: Any) -> torch.Tensor | None:
    """The first tensor of what a module gave."""
    if isinstance(output, torch.Tensor):
        return output
    several = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    return next((part for part in several if isinstance(part, torch.Tensor)), None)
