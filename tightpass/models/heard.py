"""The attentions of a block at its x: their maps, what they read, and what their calls were given."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tightpass.errors import InputError
from tightpass.models.attention import Attended, overheard
from tightpass.models.blocks import Block
from tightpass.models.branches import bare_attention
from tightpass.models.capture import Call, record
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
    with torch.no_grad(), overheard() as given:
        reads = _inputs(block)
    if len(given) != len(block.layers):
        raise NoFormulasError("the attention computes by itself")
    found = []
    for parts, calls, call, h in zip(block.layers, block.calls, given, reads, strict=True):
        maps = attention_maps(parts)
        found.append(Heard(maps, turned(parts, maps, calls["context"].rotary, call, h), call, h))
    return tuple(found)


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
