"""The door to blocks: one is made, and its derivative checked, before anything relies on it.

Here and not in `models`, which knows no formulas to hold a derivative against; and when a block is made, not its Jacobian,
since blocks are differentiated by others as well.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch

from tightpass import doors
from tightpass.errors import InputError
from tightpass.jacobians.derivative import check_derivative
from tightpass.models.blocks import Block, build
from tightpass.models.capture import Captured, capture
from tightpass.models.inputs import NO_ID, Given, check_tokens, read_input, refuse_text
from tightpass.models.loading import Model
from tightpass.models.options import KINDS, Options, check_options, counted
from tightpass.models.submodule import ModuleBlock, Whole, module_block, whole_of
from tightpass.models.tokens import Reader, Tokens, check_ids, tokenize
from tightpass.structure import Structure, check_kind


def block(
    model: Any,
    kind: str | None = None,
    layer: int | None = None,
    head: int | None = None,
    text: str | None = None,
    tokens: int | None = None,
    token_ids: list[int] | None = None,
    norm: bool = True,
    residual: bool = False,
    special: bool = True,
    seed: int = 0,
    pixel_values: Any = None,
    input_features: Any = None,
    module: str | None = None,
    structure: Structure | None = None,
) -> Block | ModuleBlock:
    """One block of a model at the activations that a text, or token ids, give; or any module of it.

    model      the result of `load_model`; for `module` any model of transformers that is loaded, of which a copy in float64 is made
    kind       "mlp", "attn", "head" (with `head`), "layer" or "model" (without `layer`)
    layer      counted from 0, or from the end: -1 is the last
    tokens     of a text; if left out, all of a given one that there are positions for, 64 of the bundled one. Of other inputs there are as many as they make
    pixel_values, input_features    of models that read images (channels, height, width) or sounds (mel bins, frames), as their
           processors give them; random numbers if left out, with a warning, as token ids are where there is no tokenizer
    norm, residual, special    the pre-norm that the block
           reads through, the identity beside it, the tokenizer's special tokens
    module     path of a module, such as "model.layers.3.mlp", in the place of a kind: for models and modules that no kind
           names. Its first tensor (tokens, width) is x, its first output y; what else it is given is held. By automatic
           differentiation
    structure  of `module` only: what is known of its Jacobian over tokens, Dense() if left out; probed before it is used

    Raises InputError for what the model does not have, and for a module that is no map of (tokens, width) tensors.
    """
    norm, residual, special = (
        doors.flag(name, value) for name, value in (("norm", norm), ("residual", residual), ("special", special))
    )
    asked = Asked(text, _integer("tokens", tokens), token_ids, special, doors.seed(seed))
    signal = Given(pixel_values, input_features)
    if module is not None:
        _alone(kind=kind, layer=layer, head=head, norm=None if norm else False, residual=residual or None)
        check_kind(structure)
        whole = whole_of(model)
        given = read(model, asked, signal) if isinstance(model, Model) else read_any(whole, asked, signal)
        return module_block(whole, module, _told(given), structure)
    if not isinstance(model, Model):
        raise InputError(
            f"block expects the result of tightpass.load_model, got {type(model).__name__}; "
            "of a loaded Hugging Face model any module is to be had, by module=PATH"
        )
    if structure is not None:
        raise InputError("a block brings its own structure; structure= belongs to module=")
    if kind is None:
        raise InputError(f"block needs a kind ({', '.join(KINDS)}), or module=PATH")
    options = Options(kind, _layer(model, layer), _integer("head", head), norm, residual)
    check_options(model.shape, options, model.name)
    given = read(model, asked, signal)
    return build_checked(capture(model, _told(given), None if options.layer is None else [options.layer]), options)


@dataclass(frozen=True)
class Asked:
    """Of a text: which, how many tokens of it, or which ids instead, with special tokens or without, and a seed for no text."""

    text: str | None
    tokens: int | None
    token_ids: Any
    special: bool
    seed: int


def read(model: Model, asked: Asked, signal: Given) -> Tokens:
    """What the model is run on. Raises InputError for what it does not read."""
    found = read_input(model.shape, signal, model.name, asked.seed)
    if found is None:
        return _ids(model, asked)
    assert model.shape.reads is not None
    refuse_text(model.shape.reads, model.name, text=asked.text, token_ids=asked.token_ids)
    check_tokens(asked.tokens, found, model.name)
    return found


def read_any(whole: Whole, asked: Asked, signal: Given) -> Tokens:
    """Likewise, of a model that no row of the table knows."""
    name = signal.name
    if whole.reads == "input_ids" and name is None:
        return _ids(whole, asked)
    if name != whole.reads:
        raise InputError(f"{whole.name} reads {whole.reads}; give {whole.reads}=, got {name or 'none'}")
    values = torch.as_tensor(getattr(signal, name))
    return Tokens(torch.full((len(values),), NO_ID), f"given {name}", signal=values)


def _ids(reader: Reader, asked: Asked) -> Tokens:
    if asked.text is not None and asked.token_ids is not None:
        raise InputError("give text or token_ids, not both")
    if asked.token_ids is not None:
        ids = check_ids(reader, asked.token_ids)
        if asked.tokens not in (None, len(ids)):
            raise InputError(f"token_ids has {len(ids)} ids, {asked.tokens} tokens were asked for; leave tokens out")
        return Tokens(ids, "given ids")
    return tokenize(reader, asked.tokens, asked.text, asked.special, asked.seed)


def _told(found: Tokens) -> torch.Tensor:
    """What the model is run on, with a warning where it was made up."""
    if found.random:
        warnings.warn(found.origin, stacklevel=3)
    return found.given


def _alone(**others: Any) -> None:
    """Raises InputError for what says which block, where a module does."""
    for name, value in others.items():
        if value is not None:
            raise InputError(f"module= says which block it is; leave out {name}")


def _layer(model: Model, value: Any) -> int | None:
    """A layer's number, counted from the end where it is negative."""
    layer = _integer("layer", value)
    return None if layer is None else counted(layer, len(model.shape.layers), model.name)


def _integer(name: str, value: Any) -> int | None:
    """An integer of Python or NumPy, or None. Raises InputError for anything else."""
    if value is None:
        return None
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InputError(f"{name} must be an integer, got {doors.shown(value)}")
    return int(value)


def build_checked(captured: Captured, options: Options) -> Block:
    """The block at captured inputs, after all load-time checks."""
    made = build(captured, options)
    check_derivative(made)
    return made
