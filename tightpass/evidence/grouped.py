"""What an attention's heads let pass at most, and what queries that share keys and values take from that.

Of H query heads in G groups, the values add (A^h δv)_h with one δv ∈ R^(T·d_head) a group, and the softmax's pattern adds, head by
head, vectors of W_t = span{v_s − v_0 : s ≤ t} at token t, of p_t ≤ min(t, d_head) dimensions. Where δv_t ∈ W_t the first lies
within the second, so a group of g heads passes at most T·d_head − Σ_t p_t + g·Σ_t p_t, and all of them

    rank J ≤ G·T·d_head + (H − G)·Σ_t p_t.

The weights of a row must sum to 1: with sinks W_t = span{v_s}, p_t ≤ min(t + 1, d_head). Tokens that read the same have the same
value, and count once. Where later tokens are seen too W_t is the span of all that any token sees, p_t ≤ min(T − 1, d_head). With windows the values still pass what they do,
and the pattern, of what is seen alone, adds to it: G·T·d_head + H·Σ_t min(seen from t less 1, d_head).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tightpass.models.blocks import Block
from tightpass.models.formulas import NoFormulasError
from tightpass.models.heard import Heard, attentions_of
from tightpass.rank.records import Bound


@dataclass(frozen=True)
class Grouped:
    """The directions that an attention's paths can add at most: `values` at weights that are held, `pattern` through the weights,
    and `both` together, less than their sum, for a reason in words."""

    values: int
    pattern: int
    both: int
    reason: str


def attention_bounds(block: Block) -> Iterator[Bound]:
    """Upper bounds on the rank of an attention without a residual, each with its reason."""
    parts, (T, d) = block.layers[0], block.x.shape
    heads, d_head = parts.heads, parts.d_head
    if heads * d_head < d:
        yield Bound(T * heads * d_head, f"{T} tokens × {heads} heads × {d_head} directions of each")
    found = grouped(block)
    if found is not None and found.both < T * min(d, heads * d_head):
        yield Bound(found.both, found.reason)


def grouped(block: Block) -> Grouped | None:
    """Of an attention; None where its formulas are not known, or where no keys and values are shared."""
    parts = block.layers[0]
    heads, groups, d_head = parts.heads, parts.kv_heads, parts.d_head
    if groups == heads or not block.has_formulas:
        return None
    try:
        (heard,) = attentions_of(block)
    except NoFormulasError:
        return None
    (T, d), causal = block.x.shape, block.model.shape.causal
    seen = _seen(heard, causal)
    # all that any token so far has seen, or any at all: the spans must lie in each other
    known = seen.cumsum(0) > 0 if causal else seen.any(0, keepdim=True).expand_as(seen)
    span, window = (_dimensions(block.x, sets, heard.sums_to_one, d_head) for sets in (known, seen))
    values, beside = groups * T * d_head, heads - groups
    said = f"{T} tokens × {groups} heads of keys and values × {d_head}"
    bounds = [
        (values + beside * sum(span), f"{said}, and {sum(span)} for each of {beside} more heads of queries"),
        (
            values + heads * sum(window),
            f"{said}, and {sum(window)} for each of {heads} heads of queries in their windows",
        ),
    ]
    if causal:
        each = [min(d, groups * d_head + beside * p) for p in span]
        bounds.append((sum(each), f"{bounds[0][1]}, at most {d} a token"))
    both, reason = min(bounds, key=lambda bound: bound[0])
    return Grouped(values, heads * sum(window), both, reason)


def _seen(heard: Heard, causal: bool) -> torch.Tensor:
    """(T, T) which tokens each one attends to."""
    T = len(heard.h)
    seen = torch.ones(T, T, dtype=torch.bool)
    if heard.given.mask is not None:
        seen = (heard.given.mask > torch.finfo(torch.float32).min / 2).any(0).cpu()
    return seen.tril() if causal else seen


def _dimensions(x: torch.Tensor, seen: torch.Tensor, sums_to_one: bool, d_head: int) -> list[int]:
    """For each row of `seen` the dimensions of what its tokens' values span, up to a common one where weights sum to 1."""
    _, same = torch.unique(x.cpu(), dim=0, return_inverse=True)
    distinct: list[int] = [len(same[row].unique()) for row in seen]
    return [min(count - (1 if sums_to_one else 0), d_head) for count in distinct]
