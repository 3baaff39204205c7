"""The door to blocks: one is made, and its derivative checked, before anything relies on it.

Here and not in `models`, which knows no formulas to hold a derivative against; and when a block is made, not its Jacobian,
since blocks are differentiated by others as well.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

from tightpass import doors
from tightpass.errors import InputError
from tightpass.jacobians.derivative import check_derivative
from tightpass.models.blocks import Block, build
from tightpass.models.capture import Captured, capture
from tightpass.models.inputs import Given, check_tokens, read_input, refuse_text
from tightpass.models.loading import Model
from tightpass.models.options import Options, check_options
from tightpass.models.tokens import check_ids, tokenize

TOKENS = 64
"""Of a text, where no number is given."""


def block(
    model: Model,
    kind: str,
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
) -> Block:
    """One block of a model at the activations that a text, or token ids, give.

    kind   "mlp", "attn", "head" (with `head`), "layer" or "model" (without `layer`)
    tokens     of a text, 64 if left out; of other inputs there are as many as they make
    pixel_values, input_features    of models that read images (channels, height, width) or sounds (mel bins, frames), as their
           processors give them; random numbers if left out
    norm, residual, special    the pre-norm that the block
           reads through, the identity beside it, the tokenizer's special tokens

    Raises InputError for what the model does not have.
    """
    if not isinstance(model, Model):
        raise InputError(f"block expects the result of tightpass.load_model, got {type(model).__name__}")
    layer, head = _integer("layer", layer), _integer("head", head)
    count = _integer("tokens", tokens)
    if text is not None and token_ids is not None:
        raise InputError("give text or token_ids, not both")
    norm, residual, special = (
        doors.flag(name, value) for name, value in (("norm", norm), ("residual", residual), ("special", special))
    )
    options = Options(kind, layer, head, norm, residual)
    check_options(model.shape, options, model.name)
    read = read_input(model.shape, Given(pixel_values, input_features), model.name, doors.seed(seed))
    if read is not None:
        assert model.shape.reads is not None
        refuse_text(model.shape.reads, model.name, text=text, token_ids=token_ids)
        check_tokens(count, read, model.name)
        given = read.given
    elif token_ids is None:
        given = tokenize(model, TOKENS if count is None else count, text, special, seed).ids
    else:
        given = check_ids(model, token_ids)
    return build_checked(capture(model, given, None if options.layer is None else [options.layer]), options)


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
