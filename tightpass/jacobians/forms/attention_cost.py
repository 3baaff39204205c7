"""What attention's closed form takes, and in what parts its mixes of heads are formed."""

from __future__ import annotations

from itertools import pairwise

import torch

from tightpass.jacobians.forms.base import PANEL_ELEMENTS, Cost

MIX_ELEMENTS = 2**24
"""Of the mixes of heads, a d_out × d_in matrix for each input token, while a row's norm is found."""
MIXED = 16
GRAM_COLUMNS = 2**16


def mixed_at_once(elements: int) -> int:
    """Input tokens whose mixes of heads, of so many elements each, are formed together."""
    return max(MIXED, MIX_ELEMENTS // elements // MIXED * MIXED)


def sum_of_grams(rows: torch.Tensor) -> torch.Tensor:
    """Few rows times their transpose, of many columns: in parts, since one long sum rounds more, and einsum copies both sides."""
    return torch.stack([part @ part.T for part in rows.split(GRAM_COLUMNS, dim=1)]).sum(0)


def in_mixes(tokens: int, elements: int) -> list[slice]:
    """All input tokens in parts of that many, the last up to twice as many: products with a few columns alone would round
    otherwise."""
    step = mixed_at_once(elements)
    edges = [*range(0, max(1, tokens // step) * step, step), tokens]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def cost(tokens: int, d: int, heads: int, d_head: int, causal: bool) -> Cost:
    """Of some heads of an attention between activations of width d."""
    inner, blocks = heads * d_head, tokens * (tokens + 1) // 2 if causal else tokens**2
    weights, between, mixings = d * inner, heads * tokens**2, heads * tokens * d_head**2
    by_token = heads * tokens * d
    return Cost(
        product=2.0 * 4 * tokens * weights + 2.0 * 3 * blocks * inner,
        blocks=4.0 * heads * d * d * blocks,
        # weights as they are and as products take them, q to o, weights of the softmax; P_h; Wo on values, keys through Wq
        kept=11 * weights + 10 * tokens * inner + 2 * between + mixings + heads * d * d + 5 * by_token,
        working=tokens * (3 * d + 6 * inner),
        widest=tokens * max(d, inner),
        panel=min(blocks * d * d, max(PANEL_ELEMENTS, tokens * d * d, heads * d * d)),
        writing=3 * heads * min(tokens, d_head) * d + heads * tokens * d,  # the query's term, and the keys of a row
        norm=2 * heads * d * d + 8 * by_token + min(tokens, 2 * mixed_at_once(d * d)) * d * d,
    )
