"""What the branches of a layer compute, as maps and norms: read off its modules, and held against what its own code gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tightpass.models.attention import Attended
from tightpass.models.linear import Affine, affine
from tightpass.models.norms import NormKind, kind_of
from tightpass.models.parts import LayerParts

ROUNDED = 1e4
"""Roundings of the largest entry by which queries, keys and values may be off those that the model's code gives."""

Tables = tuple[torch.Tensor, torch.Tensor]


class NoFormulasError(Exception):
    """A piece of a model that this package has no formulas for; automatic differentiation needs none."""


@dataclass(frozen=True)
class MLPMaps:
    """down(act(up(h))) or, with two first maps, down(act(gate(h))∘up(h))."""

    firsts: tuple[Affine, ...]
    act: nn.Module
    down: Affine


def mlp_maps(parts: LayerParts) -> MLPMaps:
    """Of a layer. Raises NoFormulasError for an MLP that is something else."""
    if parts.act is None:
        raise NoFormulasError(f"no formulas for the MLP of {type(parts.layer).__name__}")
    if parts.gate_up is not None:
        both = _affine(parts.gate_up)
        count = len(both.weight) // 2
        firsts: tuple[Affine, ...] = (both.rows(slice(0, count)), both.rows(slice(count, None)))
    else:
        modules = [module for module in (parts.gate, parts.up) if module is not None]
        firsts = tuple(_affine(module) for module in modules)
    return MLPMaps(firsts, parts.act, _affine(parts.down))


@dataclass(frozen=True)
class HeadNorm:
    """A norm on queries or keys (heads, T, d_head), of each head or, `wide`, of all heads together.

    kind   its weight is (heads, d_head) or (1, d_head)
    """

    kind: NormKind
    wide: bool

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        xhat, _ = self.at(x)
        y = xhat if self.kind.gamma is None else xhat * self.kind.gamma[:, None]
        return y if self.kind.bias is None else y + self.kind.bias[:, None]

    def at(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x̂ (heads, T, d_head) and r (heads, T)."""
        if not self.wide:
            return self.kind.at(x)
        heads, T, d_head = x.shape
        xhat, r = self.kind.at(x.transpose(0, 1).reshape(T, -1))
        return xhat.view(T, heads, d_head).transpose(0, 1), r.expand(heads, T)


@dataclass(frozen=True)
class AttentionMaps:
    """Of a layer: maps from width to (heads·d_head), to (kv_heads·d_head) twice, and back; norms on queries and keys."""

    query: Affine
    key: Affine
    value: Affine
    output: Affine
    query_norm: HeadNorm | None
    key_norm: HeadNorm | None


def attention_maps(parts: LayerParts) -> AttentionMaps:
    """Of a layer. Raises NoFormulasError for an attention that is something else."""
    query, key, value = _projections(parts)
    like = query.weight
    return AttentionMaps(
        query,
        key,
        value,
        _affine(parts.projection),
        _head_norm(parts.query_norm, parts.heads, parts.d_head, like),
        _head_norm(parts.key_norm, parts.kv_heads, parts.d_head, like),
    )


def _projections(parts: LayerParts) -> tuple[Affine, Affine, Affine]:
    if parts.query_key_value is None:
        query, key, value = (_affine(module) for module in (parts.query, parts.key, parts.value))
        return query, key, value
    fused, heads, d_head = _affine(parts.query_key_value), parts.heads, parts.d_head
    if parts.by_head:
        order = torch.arange(len(fused.weight), device=fused.weight.device).view(heads, 3, d_head)
        query, key, value = (fused.rows(order[:, i].flatten()) for i in range(3))
        return query, key, value
    inner, shared = heads * d_head, parts.kv_heads * d_head
    return (
        fused.rows(slice(0, inner)),
        fused.rows(slice(inner, inner + shared)),
        fused.rows(slice(inner + shared, inner + 2 * shared)),
    )


def _affine(module: nn.Module | None) -> Affine:
    found = affine(module)
    if found is None:
        raise NoFormulasError(f"no formulas for {type(module).__name__}")
    return found


def _head_norm(module: Any, heads: int, d_head: int, like: torch.Tensor) -> HeadNorm | None:
    """Raises NoFormulasError for a norm on heads that is none of those known."""
    if module is None or type(module) is nn.Identity:
        return None
    each = [kind_of(norm, d_head, like) for norm in getattr(module, "norms", [module])]
    first = each[0]
    if first is None or any(kind is None or (kind.centred, kind.eps) != (first.centred, first.eps) for kind in each):
        raise NoFormulasError(f"no formulas for {type(module).__name__}")
    wide = heads > 1 and first.weight is not None and first.weight.shape == (heads * d_head,)
    weight, bias = (_by_head([getattr(kind, name) for kind in each], d_head) for name in ("weight", "bias"))
    return HeadNorm(NormKind(first.centred, first.eps, weight, first.offset, bias), wide)


def _by_head(each: list[torch.Tensor | None], d_head: int) -> torch.Tensor | None:
    """Weights of one norm, or of each head's own, as (heads or 1, d_head)."""
    given = [part.reshape(-1, d_head) for part in each if part is not None]
    return torch.cat(given) if given else None


# ---- how queries and keys are made of their maps: what gives those of the model's own code


def halves(x: torch.Tensor) -> torch.Tensor:
    """(−x₂, x₁) of the two halves of the last axis."""
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def pairs(x: torch.Tensor) -> torch.Tensor:
    """(−x₁, x₀, −x₃, x₂, ..) of neighbours in the last axis."""
    return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)


Half = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Rotation:
    """R_t x = cos_t∘x + sin_t∘half(x) (Su et al. 2021); cos, sin (T, r), and only the first r of d_head entries turn."""

    cos: torch.Tensor
    sin: torch.Tensor
    half: Half = halves

    def turn(self, x: torch.Tensor, t: int | slice) -> torch.Tensor:
        """R_t on the last axis of x (..., d_head); for a slice of tokens x is (..., tokens, d_head)."""
        turning, rest = self._split(x)
        return torch.cat([self.cos[t] * turning + self.sin[t] * self.half(turning), rest], -1)

    def back(self, x: torch.Tensor, t: int | slice) -> torch.Tensor:
        """R_tᵀ likewise."""
        turning, rest = self._split(x)
        return torch.cat([self.cos[t] * turning - self.half(self.sin[t] * turning), rest], -1)

    def _split(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        r = self.cos.shape[-1]
        return x[..., :r], x[..., r:]


@dataclass(frozen=True)
class Turned:
    """How queries are made of what their map gives, and keys of theirs: through norms, and then turned by `rotation`.

    scale   of the scores, with what the model's code has multiplied its queries by
    """

    rotation: Rotation | None
    scale: float


def turned(parts: LayerParts, maps: AttentionMaps, tables: Tables | None, given: Attended, h: torch.Tensor) -> Turned:
    """What makes queries and keys of h (T, d) those that the attention was given: of all ways that are known the nearest.

    Raises NoFormulasError where that is off by more than rounding, or values are not those of their map, as where they are clipped.
    """
    query, key = (
        norm_of(by_head(map_(h), parts.d_head), norm)
        for map_, norm in ((maps.query, maps.query_norm), (maps.key, maps.key_norm))
    )
    ways = list(_rotations(tables, parts.d_head))
    rotation = min(ways, key=lambda way: _apart(_turn(way, key), given.key))
    turned_key, turned_query = _turn(rotation, key), _turn(rotation, query)
    factor = min((1.0, parts.d_head**-0.5), key=lambda factor: _apart(turned_query * factor, given.query))
    for mine, theirs in (
        (turned_key, given.key),
        (turned_query * factor, given.query),
        (by_head(maps.value(h), parts.d_head), given.value),
    ):
        if not _apart(mine, theirs) <= ROUNDED * torch.finfo(theirs.dtype).eps * float(theirs.abs().max()):
            raise NoFormulasError(f"{type(parts.context).__name__} makes its queries, keys or values in another way")
    return Turned(rotation, given.scale * factor)


def norm_of(x: torch.Tensor, norm: HeadNorm | None) -> torch.Tensor:
    """Through a norm, if there is one."""
    return x if norm is None else norm(x)


def by_head(flat: torch.Tensor, d_head: int) -> torch.Tensor:
    """(T, heads·d_head) as (heads, T, d_head)."""
    return flat.view(len(flat), -1, d_head).transpose(0, 1)


def _rotations(tables: Tables | None, d_head: int) -> Iterator[Rotation | None]:
    """Tables arrive in layers that do not turn, too, and some with each angle once."""
    if tables is not None and tables[0].shape[-1] <= d_head and tables[0].shape[-1] % 2 == 0:
        for half in (halves, pairs):
            yield Rotation(*tables, half)
    if tables is not None and 2 * tables[0].shape[-1] <= d_head:
        cos, sin = (torch.cat([table, table], -1) for table in tables)
        yield Rotation(cos, sin)
    yield None


def _turn(rotation: Rotation | None, x: torch.Tensor) -> torch.Tensor:
    return x if rotation is None else rotation.turn(x, slice(None))


def _apart(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference; infinite for arrays of other sizes."""
    return float((mine - theirs).abs().max()) if mine.shape == theirs.shape else float("inf")
