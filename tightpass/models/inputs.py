"""The input of a model that reads no text: pixels or features as given, of an image, or drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tightpass import doors
from tightpass.errors import InputError
from tightpass.models.images import pixels_of
from tightpass.models.shape import Shape
from tightpass.models.signal import SUBJECTS, Signal
from tightpass.models.tokens import Tokens


@dataclass(frozen=True)
class Given:
    """What a caller hands to such a model; one of them, or none for random numbers."""

    pixel_values: Any = None
    input_features: Any = None
    image: str | None = None

    @property
    def name(self) -> str | None:
        """Which it is. Raises InputError for more than one."""
        found = [name for name in ("pixel_values", "input_features", "image") if getattr(self, name) is not None]
        if len(found) > 1:
            raise InputError(f"give {' or '.join(found)}, not both")
        return found[0] if found else None


def read_input(shape: Shape, given: Given, model: str, seed: int, location: str | None = None) -> Tokens | None:
    """The tokens of a model that reads no text, one for each of its pieces; None for a model that reads text.

    model      its name, for errors
    location   directory or Hub id, where its own image processor may be

    Raises InputError for what such a model does not read.
    """
    signal, name = shape.reads, given.name
    if signal is None:
        if name is not None:
            raise InputError(f"{model} reads text, and has no use for {_flag(name)}; give a text or token ids")
        return None
    if name is None:
        return _drawn(signal, seed)
    if {"image": "pixel_values"}.get(name, name) != signal.name:
        raise InputError(f"{model} reads {signal.name}, and has no use for {_flag(name)}")
    if given.image is not None:
        return _tokens(signal, *pixels_of(given.image, signal, location), model)
    return _tokens(signal, _tensor(signal, getattr(given, name)), f"given {name}", model)


def _flag(name: str) -> str:
    return "an image" if name == "image" else name


def refuse_text(signal: Signal, model: str, **texts: Any) -> None:
    """Raises InputError, naming the option, for a text handed to a model that reads none."""
    for name, value in texts.items():
        if value is not None:
            raise InputError(
                f"{model} reads {signal.name}, not text; leave out {name}, and give {_ways(signal)}, or nothing for random numbers"
            )


def _ways(signal: Signal) -> str:
    return "pixel_values (--image FILE)" if signal.name == "pixel_values" else signal.name


def check_tokens(asked: int | None, found: Tokens, model: str) -> None:
    """Raises InputError where another number of tokens was asked for than the input makes."""
    if asked is not None and asked != len(found.ids):
        raise InputError(
            f"{model} makes {len(found.ids)} tokens of this {found.subject}, {asked} were asked for; leave tokens out"
        )


def _drawn(signal: Signal, seed: int) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(signal.shape, generator=generator, dtype=torch.float64)
    numbers, subject = SUBJECTS[signal.name]
    return _as_tokens(signal, values, f"random {numbers} (seed {seed}): no {subject} was given", random=True)


def _tensor(signal: Signal, values: Any) -> torch.Tensor:
    """Without an axis over several inputs. Raises InputError for what is no floating tensor or array."""
    try:
        tensor = torch.as_tensor(values).detach()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{signal.name} must be a tensor or an array, got {doors.shown(values)}") from None
    if not tensor.is_floating_point() or tensor.is_sparse or tensor.is_meta:
        raise InputError(
            f"{signal.name} must be a tensor of floating numbers, as the model's processor gives them, got {tensor.dtype}"
        )
    return tensor[0] if tensor.ndim == len(signal.shape) + 1 and len(tensor) == 1 else tensor


def _tokens(signal: Signal, values: torch.Tensor, origin: str, model: str) -> Tokens:
    if not signal.takes(tuple(values.shape)):
        raise InputError(f"{signal.name} of {model}: expected {signal.expected}, got {tuple(values.shape)}")
    if not bool(values.isfinite().all()):
        raise InputError(f"{signal.name} has NaN or infinity in it")
    return _as_tokens(signal, values, origin)


def _as_tokens(signal: Signal, values: torch.Tensor, origin: str, random: bool = False) -> Tokens:
    ids = torch.full((signal.tokens(tuple(values.shape)),), NO_ID)
    return Tokens(ids, origin, random, values, SUBJECTS[signal.name][1])


NO_ID = -1
"""Stored for tokens that are no words."""
