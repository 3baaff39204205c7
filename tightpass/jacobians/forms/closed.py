"""From a block to its closed form, where there is one, checked against autodiff."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from tightpass.errors import InputError
from tightpass.jacobians.forms.attention import ClosedAttention
from tightpass.jacobians.forms.attention_cost import cost as attention_cost
from tightpass.jacobians.forms.base import Cost, Piece
from tightpass.jacobians.forms.compose import Chain, Identity, Sum, cost_of_layers
from tightpass.jacobians.forms.heads import Heads, Scores
from tightpass.jacobians.forms.mlp import ActiveMLP, Branch, ClosedMLP, slope_of
from tightpass.jacobians.forms.mlp import cost as mlp_cost
from tightpass.jacobians.forms.norm import ClosedNorm, NormAt, norm_at
from tightpass.jacobians.forms.turning import Turning, normed_at, turning
from tightpass.jacobians.perturbing import rounding, size_of
from tightpass.jacobians.probe import explained, ratio
from tightpass.jacobians.twice.block import twice
from tightpass.jacobians.twice.pair import of
from tightpass.models.blocks import Block, Function, depth_of
from tightpass.models.branches import bare_attention, bare_mlp
from tightpass.models.capture import Call, record
from tightpass.models.formulas import (
    HeadNorm,
    MLPMaps,
    NoFormulasError,
    Rotation,
    by_head,
    mlp_maps,
    norm_of,
)
from tightpass.models.genuine import genuine
from tightpass.models.heard import Heard, attentions_of
from tightpass.models.linear import Affine
from tightpass.models.norms import multiplier_of
from tightpass.models.parts import LayerParts
from tightpass.models.shape import Shape

DOUBTFUL = 0.1
"""Relative difference from autodiff up to which rounding may be the reason; formulas that are wrong differ by more."""
MOVED = 10.0
"""Times as far as eight perturbed computations on the average, autodiff's own rounding may be off."""
AGREED = 1e-6
"""Relative difference in float64 up to which formulas in doubt in float32 are those of the function."""


def closed_form(block: Block) -> Piece | None:
    """The closed form of a block; None where its family's row, or a module in it, is not what the formulas know."""
    return tried(block)[0]


def tried(block: Block) -> tuple[Piece | None, bool]:
    """Likewise, and whether formulas were rejected: then nothing else that is made of them is to be believed.

    The form is compared with autodiff in one direction at x. Where they differ by what rounding may still be, as where softmax
    saturates, the one that is nearer to products in twice float64's precision is right, if rounding is the reason: those products
    are of the same formulas. Else there is one warning, and None.
    """
    if not block.has_formulas or (form := _made(block)) is None:
        return None, False
    error, allowed = disagreement(form, block)
    if error <= allowed or (error <= DOUBTFUL and _is_rounding(form, block) and is_nearer(form, block)):
        return form, False
    warnings.warn(
        f"{block.name}: the closed form differs from automatic differentiation by {error:.1e} "
        f"(rounding explains {allowed:.0e}); automatic differentiation is used",
        stacklevel=2,
    )
    return None, True


def _made(block: Block) -> Piece | None:
    makers = {"mlp": _mlp, "attn": _attention, "head": _attention}
    with torch.no_grad():
        try:
            return makers.get(block.kind, _stack)(block)
        except NoFormulasError:
            return None


def _is_rounding(form: Piece, block: Block) -> bool:
    """Whether it can be rounding alone that a form and autodiff differ by, without a word from the formulas in more precision
    than float64: those of a float32 block agree with its function in float64; autodiff of a float64 block moves by as much
    when each of its operations is perturbed."""
    if block.x.dtype == torch.float64:
        _, w, _ = random_directions(block)
        with torch.no_grad():
            mine = form.pull(w[None])[0]
        pulled = torch.func.vjp(_held(block), block.x)[1](w)[0]
        moved = rounding(lambda: torch.func.vjp(_held(block), block.x)[1](w)[0])
        return size_of(mine - pulled) <= MOVED * moved
    wide = block.in_precision(torch.float64)
    formulas = _made(wide)
    return formulas is not None and disagreement(formulas, wide)[0] <= AGREED


def cost_of(kind: str, tokens: int, shape: Shape) -> Cost:
    """What the closed form of a block of some kind takes."""
    d, layer = shape.width, shape.widest
    heads = 1 if kind == "head" else layer.heads
    attention, mlp = (
        attention_cost(tokens, d, heads, layer.d_head, shape.causal),
        mlp_cost(tokens, d, layer.d_ff, 2 if layer.gated else 1),
    )
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
        size, gap = size_of(pushed), size_of(mine - pushed)
        adjoint = abs(float((w * mine).sum()) - float((back * v).sum()))
        reach = max(size * size_of(w), size_of(back) * size_of(v))
    return max(ratio(gap, size), ratio(adjoint, reach)), explained(v.dtype)


def _mlp(block: Block) -> Piece:
    parts, x, options = block.layers[0], block.x, block.options
    norm, h = _through(parts.mlp_norm if options.norm else None, x)
    pattern = None if block.pattern is None else block.pattern[0]
    post = _Post.of(parts.mlp_post, parts.scale, x) if options.norm else _Post()
    after = post.at(lambda: genuine(bare_mlp(parts))(h))
    identity = x if options.residual else None
    return added(lambda own, one: mlp_at(parts, norm, h, pattern, one, own), after, post.scale, identity)


def _through(module: nn.Module | None, x: torch.Tensor) -> tuple[NormAt | None, torch.Tensor]:
    """A norm at x, and what it gives."""
    return norm_at(module, x), x if module is None else genuine(module)(x)


Factor = float | torch.Tensor
"""Of what a branch gives: a number, or one for each feature, (d,)."""


@dataclass(frozen=True)
class _Post:
    """What stands behind a branch: a norm, or multipliers alone."""

    norm: nn.Module | None = None
    scale: Factor = 1.0

    @classmethod
    def of(cls, module: nn.Module | None, scale: float, like: torch.Tensor) -> _Post:
        multiplier = None if module is None else multiplier_of(module, like)
        return cls(module, scale) if multiplier is None else cls(None, multiplier * scale)

    def at(self, y: Callable[[], torch.Tensor]) -> NormAt | None:
        """The norm, if there is one, at the branch's own output y (T, d)."""
        return None if self.norm is None else norm_at(self.norm, y())


def scaled(weight: torch.Tensor, factor: Factor) -> torch.Tensor:
    """Rows of a weight (d, e), times a factor."""
    if isinstance(factor, torch.Tensor):
        return weight * factor[:, None]
    return weight if factor == 1 else weight * factor


def added(
    branch: Callable[[Factor, bool], Piece], post: NormAt | None, scale: Factor, x: torch.Tensor | None = None
) -> Piece:
    """What the residual stream receives of a branch, made with a factor of its own and whether the identity is in it: through its
    post-norm, times the layer's multiplier; and x itself, if it is given."""
    if post is None:
        return branch(scale, x is not None)
    normed = Chain(branch(1.0, False), ClosedNorm(post.times(scale)))
    return normed if x is None else Sum(normed, Identity(x))


def mlp_at(
    parts: LayerParts,
    norm: NormAt | None,
    h: torch.Tensor,
    pattern: torch.Tensor | None,
    residual: bool = False,
    scale: Factor = 1.0,
    make: type[ClosedMLP] = ClosedMLP,
) -> ClosedMLP:
    """An MLP that reads h (T, d), the norm's output if there is one, or whose units are held; times a factor."""
    maps = mlp_maps(parts)
    slopes = _slopes(maps, h) if pattern is None else (pattern,)
    folded = [first.weight if norm is None else norm.fold(first.weight) for first in maps.firsts]
    branches = [Branch(W.contiguous(), slope.contiguous()) for W, slope in zip(folded, slopes, strict=True)]
    return make(scaled(maps.down.weight, scale).contiguous(), branches, norm, residual)


def _slopes(maps: MLPMaps, h: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """act′(z), or of a gated MLP act′(g)∘u and act(g)."""
    z, *up = (first(h) for first in maps.firsts)
    slope = slope_of(maps.act, z)
    return (slope * up[0], maps.act(z)) if up else (slope,)


def without_constant(map_: Affine, folded: torch.Tensor, norm: NormAt | None, h: torch.Tensor) -> torch.Tensor:
    """map_(h) less its mean over tokens, of which the biases of norm and map would only be a rounded part."""
    at = nn.functional.linear(h, map_.weight) if norm is None else nn.functional.linear(norm.xhat, folded)
    return at - at.mean(0)


def _attention(block: Block) -> Piece:
    parts, x, options = block.layers[0], block.x, block.options
    (heard,), norm = attentions_of(block), norm_at(parts.attn_norm, x) if options.norm else None
    branch = options.norm and options.kind == "attn"
    post = _Post.of(parts.attn_post, parts.scale, x) if branch else _Post()
    after = post.at(lambda: genuine(bare_attention(parts, block.calls[0]["context"]))(heard.h))
    at = _Read(norm, heard, block.model.shape.causal)
    identity = x if options.residual else None
    return added(lambda own, one: attention_at(parts, at, options.head, one, own), after, post.scale, identity)


@dataclass(frozen=True)
class _Read:
    """An attention, and the norm whose output it reads, if there is one."""

    norm: NormAt | None
    heard: Heard
    causal: bool


def attention_at(
    parts: LayerParts, at: _Read, head: int | None = None, residual: bool = False, scale: Factor = 1.0
) -> ClosedAttention:
    """An attention, or one head of it, times a factor."""
    heard = at.heard
    maps, turn, given = heard.maps, heard.how.rotation, heard.given
    if head is not None and any(norm is not None and norm.wide for norm in (maps.query_norm, maps.key_norm)):
        raise NoFormulasError("a head whose queries are normed together with those of others")
    chosen = slice(None) if head is None else slice(head, head + 1)
    sides = [
        _side(parts, at, maps.query, maps.query_norm, turn, chosen, False),
        _side(parts, at, maps.key, maps.key_norm, turn, chosen, heard.plain_keys),
        _side(parts, at, maps.value, None, None, chosen, heard.sums_to_one),
    ]
    (Wq, q, turn_q), (Wk, k, turn_k), (Wv, v, _) = sides
    Wo = scaled(maps.output.weight, scale).reshape(-1, parts.heads, parts.d_head)[:, chosen].contiguous()
    mask = None if given.mask is None else given.mask[chosen if len(given.mask) > 1 else slice(None)]
    sinks = None if given.sinks is None else given.sinks.detach()[chosen]
    heads = Heads(Wq, Wk, Wv, Wo, q, k, v, heard.how.scale, turn_q, turn_k)
    return ClosedAttention(heads, at.norm, at.causal, residual, Scores(mask, given.cap, sinks))


def _side(
    parts: LayerParts,
    at: _Read,
    map_: Affine,
    norm: HeadNorm | None,
    rotation: Rotation | None,
    chosen: slice,
    cancels: bool,
) -> tuple[torch.Tensor, torch.Tensor, Turning | None]:
    """The folded weight (heads, d_head, d) of queries, keys or values, what it gives (heads, T, d_head), and what turns that.

    cancels   what all tokens have in common cancels in J, and is left out
    """
    count, d_head = parts.heads, parts.d_head
    groups = count // (len(map_.weight) // d_head)  # query heads that share a key and a value
    weight = map_.weight if at.norm is None else at.norm.fold(map_.weight)
    h = at.heard.h
    flat = without_constant(map_, weight, at.norm, h) if cancels else map_(h)
    own = by_head(flat, d_head)
    inside = normed_at(norm, own, groups, chosen)
    own = norm_of(own, norm).repeat_interleave(groups, 0)[chosen].contiguous()
    if rotation is not None:
        own = rotation.turn(own, slice(None)).contiguous()
    folded = weight.reshape(-1, d_head, h.shape[1]).repeat_interleave(groups, 0)[chosen].contiguous()
    return folded, own, turning(inside, rotation)


def _stack(block: Block) -> Piece:
    """Layers in a row, and the final norm, each piece at what it received when the block itself ran at x."""
    heard, received = attentions_of(block), _received(block)
    patterns = block.pattern or (None,) * len(block.layers)
    pieces: list[Piece] = []
    for i, (parts, pattern) in enumerate(zip(block.layers, patterns, strict=True)):
        here = {name: received[f"{i}.{name}"] for name, _ in _read(parts)}
        read = _Read(_at(parts.attn_norm, here.get("attn_norm")), heard[i], block.model.shape.causal)
        pieces += _layer(parts, here, read, pattern)
    if block.final_norm is not None:
        pieces.append(_norm(block.final_norm, received["final_norm"]))
    return Chain(*pieces)


READ = ("attn_norm", "attn_post", "after_attn", "mlp_norm", "up", "gate_up", "mlp_post", "after_mlp")
"""Sites of a layer at which its pieces are taken: what they receive is looked at."""


def _read(parts: LayerParts) -> Iterator[tuple[str, nn.Module]]:
    return ((name, module) for name, module in parts.items() if name in READ)


def _received(block: Block) -> dict[str, Call]:
    """The calls at the sites of every layer, as "INDEX.site", and of the final norm. Raises NoFormulasError where it is not
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
        raise NoFormulasError(str(error)) from error
    return {label: replace(call, x=_flat(call.x), y=_flat(call.y)) for label, call in calls.items()}


def _flat(at: torch.Tensor) -> torch.Tensor:
    return at.reshape(-1, at.shape[-1])


def _layer(parts: LayerParts, received: dict[str, Call], read: _Read, pattern: torch.Tensor | None) -> Iterator[Piece]:
    """x + attention and then + MLP, or both at x, each read through its norm, or each sum through its own."""
    mlp_maps(parts)  # raises where there are none
    h = received["up" if parts.gate_up is None else "gate_up"].x
    mlp_norm = _at(parts.mlp_norm, received.get("mlp_norm"))
    posts = [_Post.of(module, parts.scale, h) for module in (parts.attn_post, parts.mlp_post)]
    after_attn, after_mlp = (
        None if post.norm is None else norm_at(post.norm, received[name].x)
        for post, name in zip(posts, ("attn_post", "mlp_post"), strict=True)
    )
    attention = added(lambda own, _: attention_at(parts, read, scale=own), after_attn, posts[0].scale)
    mlp = added(
        lambda own, _: mlp_at(parts, mlp_norm, h, pattern, scale=own, make=ActiveMLP), after_mlp, posts[1].scale
    )
    if parts.parallel:
        yield Sum(attention, mlp, Identity(h))
        return
    for branch, name, after in ((attention, "after_attn", parts.after_attn), (mlp, "after_mlp", parts.after_mlp)):
        yield Sum(branch, Identity(h))
        if after is not None:
            yield _norm(after, received[name])


def _at(module: nn.Module | None, call: Call | None) -> NormAt | None:
    return None if call is None else norm_at(module, call.x)


def _norm(module: nn.Module, call: Call) -> ClosedNorm:
    at = norm_at(module, call.x)
    assert at is not None
    return ClosedNorm(at)
