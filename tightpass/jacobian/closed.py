"""From a block to its closed form, where there is one, checked against autodiff."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from tightpass.jacobian.attention import ClosedAttention, Heads
from tightpass.jacobian.mlp import Branch, ClosedMLP, slope_of
from tightpass.jacobian.norm import NoClosedFormError, NormAt, norm_at
from tightpass.jacobian.probe import explained, ratio
from tightpass.jacobian.rotation import Rotation
from tightpass.jacobian.twice.block import twice
from tightpass.jacobian.twice.pair import of
from tightpass.models.blocks import Block, Function
from tightpass.models.capture import Call
from tightpass.models.families import is_plain_linear

ClosedForm = ClosedMLP | ClosedAttention
DOUBTFUL = 0.1
"""Relative difference from autodiff up to which rounding may be the reason; formulas that are wrong differ by more."""


def closed_form(block: Block) -> ClosedForm | None:
    """The closed form of an MLP, an attention or a head; None for other kinds and unknown modules.

    It is compared with autodiff in one direction at x. Where they differ by what rounding may still be, as where softmax
    saturates, the one that is nearer to products in twice float64's precision is right; else there is one warning, and None.
    """
    if block.kind not in ("mlp", "attn", "head"):
        return None
    with torch.no_grad():
        try:
            form: ClosedForm = _mlp(block) if block.kind == "mlp" else _attention(block)
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


def is_nearer(form: ClosedForm, block: Block) -> bool:
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


def disagreement(form: ClosedForm, block: Block) -> tuple[float, float]:
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


def _linear(module: nn.Module) -> nn.Linear:
    if not isinstance(module, nn.Linear) or not is_plain_linear(module):
        raise NoClosedFormError(f"no closed form for {type(module).__name__}")
    return module


def _mlp(block: Block) -> ClosedMLP:
    parts, x = block.layers[0], block.x
    up, down = _linear(parts.up), _linear(parts.down)
    norm_module = parts.mlp_norm if block.options.norm else None
    norm = norm_at(norm_module, x)
    if block.pattern is not None:
        slope = block.pattern[0]
    else:
        act: Any = parts.act
        slope = slope_of(act, up(x if norm_module is None else norm_module(x)))
    weight = up.weight if norm is None else norm.fold(up.weight)
    return ClosedMLP(down.weight, [Branch(weight.contiguous(), slope.contiguous())], norm, block.options.residual)


def captured_rotation(call: Call) -> Rotation | None:
    """The rotation that the attention was called with, as transformers hands it over: cos and sin (1, T, r)."""
    given = call.kwargs.get("position_embeddings")
    if given is None:
        return None
    cos, sin = (part.reshape(part.shape[-2:]) for part in given)
    return Rotation(cos, sin)


def without_constant(linear: nn.Linear, folded: torch.Tensor, norm: NormAt | None, h: torch.Tensor) -> torch.Tensor:
    """linear(h) less its mean over tokens, of which the biases of norm and map would only be a rounded part."""
    at = nn.functional.linear(h, linear.weight) if norm is None else nn.functional.linear(norm.xhat, folded)
    return at - at.mean(0)


def _attention(block: Block) -> ClosedAttention:
    parts, x = block.layers[0], block.x
    norm_module = parts.attn_norm if block.options.norm else None
    norm = norm_at(norm_module, x)
    h = x if norm_module is None else norm_module(x)
    output = _linear(parts.projection).weight
    count, d_head = parts.heads, parts.d_head
    chosen = slice(None) if block.options.head is None else slice(block.options.head, block.options.head + 1)
    rotation = captured_rotation(block.calls[0]["context"])
    # what all values, or all keys, have in common cancels in J; keys that are rotated have nothing in common
    dropped = (parts.value,) if rotation is not None else (parts.key, parts.value)
    folded, values = [], []
    for module in (parts.query, parts.key, parts.value):
        linear = _linear(module)
        groups = count // (linear.weight.shape[0] // d_head)  # query heads that share a key and a value
        weight = linear.weight if norm is None else norm.fold(linear.weight)
        folded.append(weight.view(-1, d_head, x.shape[1]).repeat_interleave(groups, 0)[chosen].contiguous())
        at = without_constant(linear, weight, norm, h) if module in dropped else linear(h)
        at = at.view(len(h), -1, d_head).transpose(0, 1)
        values.append(at.repeat_interleave(groups, 0)[chosen].contiguous())
    Wo = output.view(-1, count, d_head)[:, chosen].contiguous()
    (Wq, Wk, Wv), (q, k, v) = folded, values
    if rotation is not None:
        q, k = rotation.turn(q, slice(None)).contiguous(), rotation.turn(k, slice(None)).contiguous()
    heads = Heads(Wq, Wk, Wv, Wo, q, k, v, scale=d_head**-0.5, rotation=rotation)
    causal = block.model.family.causal(block.model.config)
    return ClosedAttention(heads, norm, causal, block.options.residual)
