"""The attentions of a block at its x: their maps, what they read, and what their calls were given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from tightpass.errors import InputError
from tightpass.models.attention import Attended, overheard
from tightpass.models.blocks import Block
from tightpass.models.branches import bare_attention
from tightpass.models.capture import Call, record
from tightpass.models.families.base import OwnScores
from tightpass.models.formulas import AttentionMaps, NoFormulasError, Turned, attention_maps, turned
from tightpass.models.genuine import genuine


@dataclass(frozen=True)
class Heard:
    """One attention: h (T, d) that it reads, and how its queries and keys are made of that."""

    maps: AttentionMaps
    how: Turned
    given: Attended
    h: torch.Tensor

    @property
    def plain_keys(self) -> bool:
        """Whether what all keys have in common changes nothing: it adds the same to all scores of a row."""
        return self.how.rotation is None and self.maps.key_norm is None and self.given.cap is None and self.sums_to_one

    @property
    def sums_to_one(self) -> bool:
        """Whether each row of weights sums to 1, so that what all values have in common passes unchanged."""
        return self.given.sinks is None


def attentions_of(block: Block) -> tuple[Heard, ...]:
    """Of every layer inside; none of an MLP. Raises NoFormulasError for one that is not known."""
    if block.kind == "mlp":
        return ()
    own = block.model.family.own_scores
    with torch.no_grad(), overheard() as given, ExitStack() as heard:
        if own is not None:
            for parts in block.layers:
                heard.enter_context(_listening(parts.context, own, given))
        reads = _inputs(block)
    if len(given) != len(block.layers):
        raise NoFormulasError("the attention computes by itself")
    found = []
    for parts, calls, call, h in zip(block.layers, block.calls, given, reads, strict=True):
        maps = attention_maps(parts)
        tables = calls["context"].rotary if own is None else own(parts.context, len(h)).tables
        found.append(Heard(maps, turned(parts, maps, tables, call, h), call, h))
    return tuple(found)


@contextmanager
def _listening(module: Any, own: Callable[[Any, int], OwnScores], given: list[Attended]) -> Iterator[None]:
    """Inside, what an attention of the model's own hands to its `_attn` is kept, with what that does beside its mask."""
    attend = module._attn

    def heard(query: Any, key: Any, value: Any, mask: Any = None) -> Any:
        scores, added = own(module, query.shape[-2]), None if mask is None else mask[0]
        if scores.allowed is not None:
            least = torch.finfo(query.dtype).min
            added = torch.where(scores.allowed, query.new_zeros(()) if added is None else added, least)
        given.append(Attended(query[0], key[0], value[0], added, scores.scale))
        return attend(query, key, value, mask)

    module._attn = heard
    try:
        yield
    finally:
        del module._attn


def _inputs(block: Block) -> list[torch.Tensor]:
    """What each attention reads, (T, d), while the block runs."""
    if block.kind in ("attn", "head"):
        parts = block.layers[0]
        norm = parts.attn_norm if block.options.norm else None
        h = block.x if norm is None else genuine(norm)(block.x)
        genuine(bare_attention(parts, block.calls[0]["context"]))(h)
        return [h]
    calls: dict[str, Call] = {}
    try:
        with record({str(i): parts.context for i, parts in enumerate(block.layers)}, calls):
            block(block.x)
    except InputError as error:
        raise NoFormulasError(str(error)) from error
    return [calls[str(i)].x.reshape(block.x.shape) for i in range(len(block.layers))]
