"""A model, a kind and a layer -> a block: a function of (tokens, width), and its input x.

Every block is checked when it is built: it reproduces the outputs captured in the ordinary forward pass. Its derivative is
checked where formulas for it are known besides (`jacobians/derivative.py`); finite differences are here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from tightpass import doors
from tightpass.errors import DoesNotFitError, InputError, VerificationError
from tightpass.models.branches import (
    attention_branch,
    bare_attention,
    bare_mlp,
    head_share,
    mlp_branch,
    read_through,
)
from tightpass.models.capture import Call, Captured, record
from tightpass.models.decisions import Decision, decided, experts_of, holding
from tightpass.models.differences import direction, loses_precision, slope_error
from tightpass.models.genuine import genuine
from tightpass.models.linear import in_features
from tightpass.models.loading import Model
from tightpass.models.options import Options, check_options
from tightpass.models.parts import LayerParts
from tightpass.models.recomposed import check_recomposed
from tightpass.models.shape import Shape
from tightpass.structure import BlockDiagonal, BlockLowerTriangular, Dense, Structure
from tightpass.work import Work, kept, passing

Function = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Block:
    """A map x -> y of (tokens, width) tensors, with what is known of its Jacobian.

    structure   which (token, token) blocks of the Jacobian can be non-zero: claimed here,
                checked by `jacobians.probe`
    width       widest intermediate per token, in elements; sizes the chunks of autodiff
    pattern     active units (tokens, d_ff) of each MLP inside, where they are held fixed
    decisions   experts taken and numbers cut off inside, at x
    held        whether they stay as they are for any x
    """

    options: Options
    model: Model
    x: torch.Tensor
    structure: Structure
    width: int
    layers: tuple[LayerParts, ...] = field(repr=False)
    calls: tuple[dict[str, Call], ...] = field(repr=False)
    final_norm: nn.Module | None = field(repr=False)
    pattern: tuple[torch.Tensor, ...] | None = field(default=None, repr=False)
    decisions: tuple[Decision, ...] = field(default=(), repr=False)
    held: bool = field(default=False, repr=False)

    def __repr__(self) -> str:
        return f"Block({self.name} of {self.model.name}, x {tuple(self.x.shape)}, {self.structure.name})"

    @property
    def name(self) -> str:
        return self.options.name

    @property
    def kind(self) -> str:
        return self.options.kind

    @property
    def tokens(self) -> int:
        return self.x.shape[0]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """y (tokens, width) at any x (tokens, width). Raises InputError for an x of another width or precision."""
        if (
            not isinstance(x, torch.Tensor)
            or x.is_nested
            or x.ndim != 2
            or x.shape[-1] != self.x.shape[-1]
            or x.dtype != self.x.dtype
        ):
            plain = isinstance(x, torch.Tensor) and not x.is_nested
            got = f"{tuple(x.shape)}, {x.dtype}" if plain else doors.shown(x)
            raise InputError(f"{self.name} expects a (tokens, {self.x.shape[-1]}) tensor of {self.x.dtype}, got {got}")
        return self.function()(x)

    def function(self, tokens: slice | None = None) -> Function:
        """The map, or, where it acts on each token alone, its restriction to some tokens, which go to the same experts."""
        if tokens is not None and self.decisions:
            return self._restricted(tokens)
        free = self._deciding(tokens)
        return holding(free, self.decisions) if self.held and self.decisions else free

    def _restricted(self, tokens: slice) -> Function:
        """Products of fewer rows are rounded otherwise, and a near-tie must not fall otherwise for that."""
        some = self._deciding(tokens)
        if not self.held:
            return holding(some, experts_of(self.decisions, tokens))
        whole, before, after = self.function(), self.x[: tokens.start], self.x[tokens.stop :]
        return lambda x: whole(torch.cat([before, x, after]))[tokens]

    def _deciding(self, tokens: slice | None = None) -> Function:
        """Likewise, whatever is decided inside."""
        kind, residual = self.kind, self.options.residual
        if kind == "mlp":
            inner = self._mlp(tokens)
        elif tokens is not None:
            raise InputError(f"{self.name} mixes tokens; it cannot be restricted to some of them")
        elif kind in ("attn", "head"):
            inner = self._attention()
        else:
            inner = self._stack()
        if residual and kind in ("mlp", "attn", "head"):
            return genuine(lambda x: x + inner(x))
        return genuine(inner)

    def _mlp(self, tokens: slice | None) -> Function:
        parts, act = self.layers[0], None
        if self.pattern is not None:
            act = PinnedReLU(self.pattern[0] if tokens is None else self.pattern[0][tokens])
        return mlp_branch(parts, act) if self.options.norm else bare_mlp(parts, act)

    def _attention(self) -> Function:
        parts, call, options = self.layers[0], self.calls[0]["context"], self.options
        if not options.norm or self.kind == "head":
            bare = bare_attention(parts, call, options.head)
            return read_through(parts.attn_norm if options.norm else None, bare)
        return attention_branch(parts, call)

    def _stack(self) -> Function:
        layers, calls, final_norm = self.layers, self.calls, self.final_norm

        def stack(x: torch.Tensor) -> torch.Tensor:
            hidden = x[None]
            for parts, call in zip(layers, calls, strict=True):
                outer = call["layer"]
                output = parts.layer(hidden, *outer.args, **outer.kwargs)
                hidden = output[0] if isinstance(output, tuple) else output
            return (hidden if final_norm is None else final_norm(hidden))[0]

        return stack

    def unit_calls(self) -> list[Call]:
        """For each MLP inside: the input and output of its first linear map, at x."""
        if self.kind in ("attn", "head"):
            return []
        ups = {str(i): parts.up for i, parts in enumerate(self.layers) if parts.up is not None}
        calls: dict[str, Call] = {}
        with torch.no_grad(), record(ups, calls):
            self(self.x)
        return [calls[label] for label in ups]

    def decide(self) -> tuple[Decision, ...]:
        """What it decides at x; where decisions are held, of what numbers it would."""
        return decided(self._deciding(), self.x, self.decisions if self.held else None)

    @property
    def has_relu_units(self) -> bool:
        """Whether there are units that are either active or not."""
        parts = self.layers[0]
        return self.kind not in ("attn", "head") and isinstance(parts.act, nn.ReLU) and not parts.gated

    @property
    def has_formulas(self) -> bool:
        """Whether the formulas of this package are those of the block."""
        return self.kind in self.model.family.closed

    def in_precision(self, dtype: torch.dtype) -> Block:
        """The same block at the same x in another precision, ReLU units held at this block's activation pattern, and its
        decisions as they are: a unit that flips is a kink, not an arithmetic error."""
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise InputError(f"a precision is a floating dtype of torch, got {doors.shown(dtype)}")
        pattern: tuple[torch.Tensor, ...] | None = None
        if self.has_relu_units:
            pattern = tuple((call.y > 0).reshape(self.tokens, -1).to(dtype) for call in self.unit_calls())
        layers = self.layers
        if dtype != self.x.dtype or (pattern is not None and self.kind != "mlp"):
            layers = tuple(
                convert(parts, dtype, None if pattern is None else PinnedReLU(pattern[i]))
                for i, parts in enumerate(self.layers)
            )
        return Block(
            options=self.options,
            model=self.model,
            x=self.x.to(dtype),
            structure=self.structure,
            width=self.width,
            layers=layers,
            calls=tuple({k: c.to(dtype) for k, c in calls.items()} for calls in self.calls),
            final_norm=None if self.final_norm is None else copy.deepcopy(self.final_norm).to(dtype),
            pattern=pattern,
            decisions=self.decisions,
            held=True,
        )


class PinnedReLU(nn.Module):
    """z -> pattern * z: a ReLU whose active units (tokens, d_ff) are fixed."""

    def __init__(self, pattern: torch.Tensor) -> None:
        super().__init__()
        self.pattern = pattern

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z * self.pattern


def convert(parts: LayerParts, dtype: torch.dtype, act: nn.Module | None) -> LayerParts:
    """A deep copy of one layer in another precision, its activation replaced if one is given. Parameters are not copied as they
    are first: of experts they are most of a model."""
    numbers = [p for p in parts.layer.parameters() if p.is_floating_point()]
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to(dtype, copy=True), False) for p in numbers}
    layer = copy.deepcopy(parts.layer, memo).to(dtype)
    if act is not None and parts.act is not None:
        layer.set_submodule(next(path for path, module in parts.layer.named_modules() if module is parts.act), act)
    return parts.inside(layer)


def build(captured: Captured, options: Options) -> Block:
    """The block at captured inputs; it reproduces the captured output."""
    model, layer = captured.model, options.layer
    check_options(model.shape, options, model.name)
    chosen = range(len(captured.parts)) if layer is None else [layer]
    _refuse_more_than_is_held(model, options)
    parts = tuple(model.held(captured.parts[i]) for i in chosen)
    calls = tuple({name: captured.call(i, name) for name in ("layer", captured.parts[i].mixing)} for i in chosen)
    x, y = _ends(captured, options, parts[0])
    made = Block(
        options=options,
        model=model,
        x=x.reshape(-1, x.shape[-1]),
        structure=_structure(model, options.kind),
        width=width_of(model.shape, options.kind, x.shape[-2]),
        layers=parts,
        calls=calls,
        final_norm=captured.final_norm if options.kind == "model" and options.norm else None,
    )
    _check_reproduces(made, y.reshape(-1, y.shape[-1]))
    _refuse_gated_relu(made)
    for i, held in zip(chosen, parts, strict=True):
        check_recomposed(captured, i, held)
    return replace(made, decisions=made.decide())


def _refuse_more_than_is_held(model: Model, options: Options) -> None:
    """Raises DoesNotFitError for a block of all layers, where only one of them is at hand."""
    if model.streamed is not None and options.layer is None:
        raise DoesNotFitError(
            f"block `model` needs all layers of {model.name} at once, and they do not fit into the memory allowed; "
            "give more --memory, or take the layers one by one"
        )


def _refuse_gated_relu(made: Block) -> None:
    """Raises InputError for units that are on or off where they cannot be counted: the rank would hang on kinks unseen."""
    if made.kind not in ("attn", "head") and any(
        isinstance(module, nn.ReLU) for parts in made.layers if parts.mlp is not None for module in parts.mlp.modules()
    ):
        raise InputError(
            f"{made.name} has a gated MLP with a ReLU, whose units near zero are not counted yet; "
            "its attention (attn, head) can be had"
        )


def _ends(captured: Captured, options: Options, parts: LayerParts) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and output of the block in the captured pass."""
    layer, kind = options.layer, options.kind
    if kind == "model":
        last = captured.call(len(captured.parts) - 1, "layer").y
        normed = options.norm and captured.final_norm is not None
        return captured.call(0, "layer").x, captured.calls["final_norm"].y if normed else last
    assert layer is not None
    if kind == "layer":
        whole = captured.call(layer, "layer")
        return whole.x, whole.y
    start, norm, end, post = ("context", "attn_norm", "projection", "attn_post")
    if kind == "mlp":
        whole_module = parts.mlp is not None
        start, norm, end, post = (
            "mlp" if whole_module else "up",
            "mlp_norm",
            "mlp" if whole_module else "down",
            "mlp_post",
        )
    reads_norm = options.norm and getattr(parts, norm) is not None
    x = captured.call(layer, norm if reads_norm else start).x
    x = x.reshape(-1, x.shape[-1])
    if kind == "head":
        y = _head_output(captured, options, parts)
    elif options.norm:
        y = captured.call(layer, end if getattr(parts, post) is None else post).y
        y = y if parts.scale == 1 else y * parts.scale
    else:
        y = captured.call(layer, end).y
    y = y.reshape(-1, y.shape[-1])
    return x, y + x if options.residual else y


def _head_output(captured: Captured, options: Options, parts: LayerParts) -> torch.Tensor:
    """One head's share of the captured attention output."""
    assert options.layer is not None
    assert options.head is not None
    mixed = captured.call(options.layer, "projection").x
    with torch.no_grad():
        return head_share(parts, mixed.reshape(-1, mixed.shape[-1]), options.head)


def _structure(model: Model, kind: str) -> Structure:
    if kind == "mlp":
        return BlockDiagonal()
    return BlockLowerTriangular() if model.shape.causal else Dense()


def width_of(shape: Shape, kind: str, tokens: int) -> int:
    """The widest intermediate of a block, per token."""
    layer = shape.widest
    mixing = 4 * shape.width + 3 * layer.heads * tokens
    return {"mlp": 2 * layer.d_ff, "attn": mixing, "head": mixing}.get(kind, max(2 * layer.d_ff, mixing))


def depth_of(shape: Shape, kind: str) -> int:
    """How many layers a block has."""
    return len(shape.layers) if kind == "model" else 1


def work_of_copy(shape: Shape, kind: str, itemsize: int) -> Work:
    """Of `Block.in_precision`, in numbers of a size."""
    return kept(depth_of(shape, kind) * shape.widest.parameters * itemsize)


def work_of_checks(shape: Shape, kind: str, tokens: int, itemsize: int) -> Work:
    """Of the checks by values and differences: the block, its ReLU units held, and tangents beside its intermediates."""
    copied = kind in ("layer", "model") and shape.widest.relu
    held = work_of_copy(shape, kind, itemsize) if copied else Work()
    return held.then(passing(3 * tokens * width_of(shape, kind, tokens) * itemsize)).dropped()


def _check_reproduces(made: Block, y: torch.Tensor) -> None:
    with torch.no_grad():
        again = made(made.x)
    if not bool(y.isfinite().all() and again.isfinite().all()):
        raise InputError(f"{made.name}: the model's own output is not finite there{_not_finite(made)}")
    difference = float((again - y).abs().max())
    size = float(y.abs().max())
    if made.kind == "head":  # a difference of two outputs of the projection: its bias takes part in the rounding
        size = max(
            size, float(made.layers[0].projection(y.new_zeros(1, in_features(made.layers[0].projection))).abs().max())
        )
    allowed = 1e3 * torch.finfo(y.dtype).eps * size
    if not difference <= allowed:
        raise VerificationError(
            f"{made.name} does not reproduce the model's own output: they differ by "
            f"{difference:.1e}, at most {allowed:.1e} is rounding; the family's row is wrong"
        )


def _not_finite(made: Block) -> str:
    """Which parameters hold numbers that are not finite, in words; the first few by name."""
    bad = [name for name, piece in made.model.pieces() if not bool(piece.isfinite().all())]
    if not bad:
        return ", though its weights are: its numbers leave the range of their precision on the way"
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    return f": NaN or infinity in its weights {', '.join(bad[:3])}{more}; repair the model's files"


def check_by_differences(made: Block) -> None:
    """JVP against central differences, at one activation pattern.

    With a step of h relative to x the truncation error is O(h²), and rounding gives eps/h: at
    h = 1e-5 a block that is float32 somewhere inside a float64 run is off by 1e-2 instead
    of 1e-10, so this also proves the precision.
    """
    smooth = made.in_precision(made.x.dtype)
    f, x = smooth.function(), smooth.x
    eps = torch.finfo(x.dtype).eps
    h, allowed = (1e-5, 1e-5) if x.dtype == torch.float64 else (3e-3, 1e-2)
    generator = torch.Generator().manual_seed(0)
    error = float("inf")
    for _ in range(3):  # a direction can be unlucky; a wrong derivative or precision always fails
        v = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        v *= x.norm(dim=-1, keepdim=True) / v.norm(dim=-1, keepdim=True)  # token by token: one may be huge
        slope = torch.func.jvp(f, (x,), (v,))[1]
        with torch.no_grad():
            quotient = (f(x + h * v) - f(x - h * v)) / (2 * h)
        error = min(error, float((quotient - slope).norm() / (slope.norm() + eps)))
        if error <= allowed:
            return
    # a mean far above the spread of x, or no spread at all: steps and rounding of another size
    lost = x.dtype == torch.float64 and loses_precision(f, x)
    v = direction(x)
    error, allowed = slope_error(f, x, v, torch.func.jvp(f, (x,), (v,))[1].detach())
    if not lost and error <= allowed:
        return
    raise VerificationError(
        f"the derivative of {made.name} differs from finite differences by {error:.1e}, expected at most "
        f"{allowed:.0e}: it is wrong, or not computed in {str(x.dtype).removeprefix('torch.')} throughout"
    )
