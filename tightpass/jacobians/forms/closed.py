"""From a block to its closed form, where there is one, checked against autodiff."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from tightpass.errors import InputError
from tightpass.jacobians.forms.attention import ClosedAttention, Heads
from tightpass.jacobians.forms.attention import cost as attention_cost
from tightpass.jacobians.forms.base import Cost, Piece
from tightpass.jacobians.forms.compose import Chain, Identity, Sum, cost_of_layers
from tightpass.jacobians.forms.mlp import ActiveMLP, Branch, ClosedMLP, slope_of
from tightpass.jacobians.forms.mlp import cost as mlp_cost
from tightpass.jacobians.forms.norm import ClosedNorm, NormAt, norm_at
from tightpass.jacobians.forms.rotation import Rotation
from tightpass.jacobians.probe import explained, ratio
from tightpass.jacobians.twice.block import twice
from tightpass.jacobians.twice.pair import of
from tightpass.jacobians.unknown import NoClosedFormError
from tightpass.models.blocks import Block, Function, depth_of
from tightpass.models.capture import Call, record
from tightpass.models.linear import is_plain_linear
from tightpass.models.parts import LayerParts
from tightpass.models.shape import Shape

DOUBTFUL = 0.1
"""Relative difference from autodiff up to which rounding may be the reason; formulas that are wrong differ by more."""


def closed_form(block: Block) -> Piece | None:
    """The closed form of a block; None where its family's row, or a module in it, is not what the formulas know.

    It is compared with autodiff in one direction at x. Where they differ by what rounding may still be, as where softmax
    saturates, the one that is nearer to products in twice float64's precision is right; else there is one warning, and None.
    """
    if not block.has_formulas:
        return None
    makers = {"mlp": _mlp, "attn": _attention, "head": _attention}
    with torch.no_grad():
        try:
            form = makers.get(block.kind, _stack)(block)
        except NoClosedFormError:
            return None
    error, allowed = disagreement(form, block)
    if error <= allowed or (error <= DOUBTFUL and is_nearer(form, block)):
        return form
    warnings.warn(
        f"{block.name}: the closed form differs from automatic differentiation by {error:.1e} "
        f"(rounding explains {allowed:.0e}); automatic differentiation is used",
        stacklevel=2,
    )
    return None


def cost_of(kind: str, tokens: int, shape: Shape) -> Cost:
    """What the closed form of a block of some kind takes."""
    d, layer = shape.width, shape.widest
    heads = 1 if kind == "head" else layer.heads
    attention, mlp = attention_cost(tokens, d, heads, layer.d_head, shape.causal), mlp_cost(tokens, d, layer.d_ff)
    if kind in ("attn", "head"):
        return attention
    if kind == "mlp":
        return mlp
    pulled = tokens * d * (0.5 if shape.causal else 1.0)
    return cost_of_layers(attention, mlp, depth_of(shape, kind), pulled)


def is_nearer(form: Piece, block: Block) -> bool:
    """Whether the closed form is no farther than autodiff from products in twice float64's precision, both ways."""
    exact, v, w, pushed = twice(block), *random_directions(block)
    if exact is None:
        return False
    pulled = torch.func.vjp(_held(block), block.x)[1](w)[0]
    true, back = (f(of(at[None])).rounded()[0] for f, at in ((exact.push, v), (exact.pull, w)))
    with torch.no_grad():
        mine, mine_back = form.push(v[None])[0], form.pull(w[None])[0]
    gaps = [
        float((at.double() - t).norm()) for at, t in ((mine, true), (pushed, true), (mine_back, back), (pulled, back))
    ]
    return gaps[0] <= gaps[1] and gaps[2] <= gaps[3]


def random_directions(block: Block) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A tangent v and a cotangent w at x, and J·v by autodiff."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(block.x.shape, generator=generator, dtype=block.x.dtype).to(block.x.device)
    v *= block.x.norm(dim=-1, keepdim=True)
    pushed = torch.func.jvp(_held(block), (block.x,), (v,))[1]
    w = torch.randn(pushed.shape, generator=generator, dtype=v.dtype).to(v.device)
    return v, w, pushed


def _held(block: Block) -> Function:
    """The block with ReLU units held: one within rounding of zero may flip."""
    return block.in_precision(block.x.dtype).function()


def disagreement(form: Piece, block: Block) -> tuple[float, float]:
    """Relative difference from autodiff in a random direction, or of the adjoint from its
    product, whichever is larger; and how much rounding can explain."""
    v, w, pushed = random_directions(block)
    with torch.no_grad():
        mine = form.push(v[None])[0]
        back = form.pull(w[None])[0]
        size = float(pushed.norm())
        gap = float((mine - pushed).norm())
        adjoint = abs(float((w * mine).sum()) - float((back * v).sum()))
        reach = max(size * float(w.norm()), float(back.norm()) * float(v.norm()))
    return max(ratio(gap, size), ratio(adjoint, reach)), explained(v.dtype)


def _linear(module: nn.Module | None) -> nn.Linear:
    if not isinstance(module, nn.Linear) or not is_plain_linear(module):
        raise NoClosedFormError(f"no closed form for {type(module).__name__}")
    return module


def _mlp(block: Block) -> Piece:
    parts, x = block.layers[0], block.x
    up = _linear(parts.up)
    norm_module = parts.mlp_norm if block.options.norm else None
    z = up(x if norm_module is None else norm_module(x))
    pattern = None if block.pattern is None else block.pattern[0]
    return mlp_at(parts, norm_at(norm_module, x), z, pattern, block.options.residual)


def mlp_at(
    parts: LayerParts,
    norm: NormAt | None,
    z: torch.Tensor,
    pattern: torch.Tensor | None,
    residual: bool = False,
    make: type[ClosedMLP] = ClosedMLP,
) -> ClosedMLP:
    """An MLP with pre-activations z (T, d_ff), or units that are held."""
    first, act, last = parts.plain_mlp
    up, down = _linear(first), _linear(last)
    slope = slope_of(act, z) if pattern is None else pattern
    weight = up.weight if norm is None else norm.fold(up.weight)
    return make(down.weight, [Branch(weight.contiguous(), slope.contiguous())], norm, residual)


def captured_rotation(call: Call) -> Rotation | None:
    """The rotation that the attention was called with."""
    return None if call.rotary is None else Rotation(*call.rotary)


def without_constant(linear: nn.Linear, folded: torch.Tensor, norm: NormAt | None, h: torch.Tensor) -> torch.Tensor:
    """linear(h) less its mean over tokens, of which the biases of norm and map would only be a rounded part."""
    at = nn.functional.linear(h, linear.weight) if norm is None else nn.functional.linear(norm.xhat, folded)
    return at - at.mean(0)


def _attention(block: Block) -> Piece:
    parts, x, options = block.layers[0], block.x, block.options
    norm_module = parts.attn_norm if options.norm else None
    h = x if norm_module is None else norm_module(x)
    causal = block.model.shape.causal
    rotation = captured_rotation(block.calls[0]["context"])
    return attention_at(parts, norm_at(norm_module, x), h, causal, rotation, options.head, options.residual)


def attention_at(
    parts: LayerParts,
    norm: NormAt | None,
    h: torch.Tensor,
    causal: bool,
    rotation: Rotation | None,
    head: int | None = None,
    residual: bool = False,
) -> ClosedAttention:
    """An attention, or one head of it, that reads h (T, d), the norm's output if there is one."""
    output = _linear(parts.projection).weight
    count, d_head = parts.heads, parts.d_head
    chosen = slice(None) if head is None else slice(head, head + 1)
    # what all values, or all keys, have in common cancels in J; keys that are rotated have nothing in common
    dropped = (parts.value,) if rotation is not None else (parts.key, parts.value)
    folded, values = [], []
    for module in (parts.query, parts.key, parts.value):
        linear = _linear(module)
        groups = count // (linear.weight.shape[0] // d_head)  # query heads that share a key and a value
        weight = linear.weight if norm is None else norm.fold(linear.weight)
        folded.append(weight.view(-1, d_head, h.shape[1]).repeat_interleave(groups, 0)[chosen].contiguous())
        at = without_constant(linear, weight, norm, h) if module in dropped else linear(h)
        at = at.view(len(h), -1, d_head).transpose(0, 1)
        values.append(at.repeat_interleave(groups, 0)[chosen].contiguous())
    Wo = output.view(-1, count, d_head)[:, chosen].contiguous()
    (Wq, Wk, Wv), (q, k, v) = folded, values
    if rotation is not None:
        q, k = rotation.turn(q, slice(None)).contiguous(), rotation.turn(k, slice(None)).contiguous()
    heads = Heads(Wq, Wk, Wv, Wo, q, k, v, scale=d_head**-0.5, rotation=rotation)
    return ClosedAttention(heads, norm, causal, residual)


def _stack(block: Block) -> Piece:
    """Layers in a row, and the final norm, each piece at what it received when the block itself ran at x."""
    received = _received(block)
    patterns = block.pattern or (None,) * len(block.layers)
    pieces: list[Piece] = []
    for i, (parts, pattern) in enumerate(zip(block.layers, patterns, strict=True)):
        here = {name: received[f"{i}.{name}"] for name, _ in _read(parts)}
        rotation = captured_rotation(block.calls[i]["context"])
        pieces += _layer(parts, here, block.model.shape.causal, rotation, pattern)
    if block.final_norm is not None:
        pieces.append(_norm(block.final_norm, received["final_norm"]))
    return Chain(*pieces)


READ = ("attn_norm", "context", "after_attn", "mlp_norm", "up", "after_mlp")
"""Sites of a layer at which its pieces are taken: what they receive is looked at."""


def _read(parts: LayerParts) -> Iterator[tuple[str, nn.Module]]:
    return ((name, module) for name, module in parts.items() if name in READ)


def _received(block: Block) -> dict[str, Call]:
    """The calls at the sites of every layer, as "INDEX.site", and of the final norm. Raises NoClosedFormError where it is not
    known which call a module has made is meant."""
    modules: dict[str, nn.Module] = {}
    for i, parts in enumerate(block.layers):
        modules |= {f"{i}.{name}": module for name, module in _read(parts)}
    if block.final_norm is not None:
        modules["final_norm"] = block.final_norm
    calls: dict[str, Call] = {}
    try:
        with record(modules, calls):
            block(block.x)
    except InputError as error:
        raise NoClosedFormError(str(error)) from error
    return {label: replace(call, x=_flat(call.x), y=_flat(call.y)) for label, call in calls.items()}


def _flat(at: torch.Tensor) -> torch.Tensor:
    return at.reshape(-1, at.shape[-1])


def _layer(
    parts: LayerParts,
    received: dict[str, Call],
    causal: bool,
    rotation: Rotation | None,
    pattern: torch.Tensor | None,
) -> Iterator[Piece]:
    """x + attention and then + MLP, each read through its norm, or each sum through its own."""
    h, z = received["context"].x, received["up"].y
    attn_norm, mlp_norm = _at(parts.attn_norm, received.get("attn_norm")), _at(parts.mlp_norm, received.get("mlp_norm"))
    yield Sum(attention_at(parts, attn_norm, h, causal, rotation), Identity(h))
    if parts.after_attn is not None:
        yield _norm(parts.after_attn, received["after_attn"])
    yield Sum(mlp_at(parts, mlp_norm, z, pattern, make=ActiveMLP), Identity(h))
    if parts.after_mlp is not None:
        yield _norm(parts.after_mlp, received["after_mlp"])


def _at(module: nn.Module | None, call: Call | None) -> NormAt | None:
    return None if call is None else norm_at(module, call.x)


def _norm(module: nn.Module, call: Call) -> ClosedNorm:
    at = norm_at(module, call.x)
    assert at is not None
    return ClosedNorm(at)
