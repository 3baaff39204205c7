"""Softmax attention in the precision of its input, with forward-mode derivatives.

The eager attention of several families computes its softmax in float32 whatever the
input, and the fused kernels have no forward-mode derivative. This one has neither flaw.
It is registered with transformers under `NAME`, together with the additive mask of eager
attention: an attention function registered without one silently loses the causal mask.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tightpass.errors import VerificationError
from tightpass.models.genuine import Genuine

NAME = "tightpass"
ALLOWED = 1e-5
"""Difference from the family's own attention, relative to it, that its lower precision may leave."""
HARMLESS = frozenset(
    """
    dropout sliding_window is_causal deterministic position_ids cache_position use_cache output_attentions output_hidden_states return_dict
    """.split()  # noqa: SIM905 - to be read
)
"""Keywords that change no number here: models are in eval mode, and windows and causality are in the mask."""

_proving: ContextVar[bool] = ContextVar("proving", default=False)


@dataclass(frozen=True)
class Attended:
    """What one call of an attention was given, of one text.

    query, key, value    (heads, T, d_head), of keys and values as many heads as there are
    mask          (1 or heads, T, T), added to the scores, biases in it; None for none
    scale         of the scores
    cap           c of cap(z) = c·tanh(z/c); None for none
    sinks         (heads,) scores of sinks; None for none
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    scale: float
    cap: float | None = None
    sinks: torch.Tensor | None = None


_overheard: ContextVar[list[Attended] | None] = ContextVar("overheard", default=None)


@contextmanager
def overheard() -> Iterator[list[Attended]]:
    """Inside, what every call of `softmax_attention` is given is kept, in their order."""
    calls: list[Attended] = []
    token = _overheard.set(calls)
    try:
        yield calls
    finally:
        _overheard.reset(token)


def softmax_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(cap(q kᵀ · scaling) + bias + mask) v for (batch, heads, tokens, d_head) tensors.

    softcap   c of cap(z) = c·tanh(z/c), where scores are held back
    s_aux     (heads,) scores of sinks, which take part in the softmax and carry no value
    position_bias   (1, heads, tokens, tokens), of T5

    Returns (batch, tokens, heads, d_head) and the weights (batch, heads, tokens, tokens). Raises VerificationError for a
    keyword that it does not know.
    """
    _refuse_unknown(module, others)
    if _proving.get():
        _prove(
            module,
            (query, key, value),
            attention_mask,
            {"scaling": scaling, "softcap": softcap, "s_aux": s_aux, "position_bias": position_bias} | others,
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if (calls := _overheard.get()) is not None:
        added = [part[0] for part in (position_bias, attention_mask) if part is not None]
        mask = sum(added[1:], added[0]) if added else None
        calls.append(Attended(query[0], key[0], value[0], mask, float(scaling), softcap, s_aux))
    groups = getattr(module, "num_key_value_groups", 1)
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(-1, -2) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1) if s_aux is None else _beside_sinks(scores, s_aux)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def _beside_sinks(scores: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """Softmax over the tokens and one more score a head, whose weight is dropped."""
    column = sinks.to(scores.dtype).reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1]


def _refuse_unknown(module: nn.Module, others: dict[str, Any]) -> None:
    unknown = sorted(
        name for name, value in others.items() if name not in HARMLESS and value is not None and value is not False
    )
    if unknown:
        raise VerificationError(
            f"{type(module).__name__} hands its attention {', '.join(unknown)}, which this package's does not compute; "
            "its numbers would be wrong, so the model is refused"
        )


@contextmanager
def proved() -> Iterator[None]:
    """Inside, every call is held against the family's own attention first, with its own mask and keywords."""
    token = _proving.set(True)
    try:
        yield
    finally:
        _proving.reset(token)


def _prove(
    module: nn.Module, given: tuple[torch.Tensor, ...], mask: torch.Tensor | None, keywords: dict[str, Any]
) -> None:
    """Raises VerificationError if, on random queries, keys and values of that size, the family's eager attention gives something else.

    Not on those of the model: where softmax saturates no difference would be seen, and rounding may be large.
    """
    own = next((f for kind in type(module).__mro__ if (f := _eager_of(kind)) is not None), None)
    if own is None:
        raise VerificationError(
            f"transformers has no eager attention for {type(module).__name__} to hold this package's against"
        )
    generator = torch.Generator().manual_seed(0)
    drawn = [2 * torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device) for t in given]
    keywords = {name: value for name, value in keywords.items() if value is not None}
    keywords.setdefault("scaling", given[0].shape[-1] ** -0.5)
    token = _proving.set(False)
    try:
        with Genuine():
            functions: tuple[Callable[..., Any], ...] = (softmax_attention, own)
            mine, theirs = (function(module, *drawn, mask, **keywords)[0] for function in functions)
    finally:
        _proving.reset(token)
    apart = float((mine - theirs).abs().max() / theirs.abs().max())
    if not apart <= ALLOWED:
        raise VerificationError(
            f"this package's attention differs from that of {type(module).__name__} by {apart:.1e}, at most {ALLOWED:.0e} "
            "is its lower precision: the family computes something else"
        )


def _eager_of(kind: type) -> Any:
    return getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)


def register() -> None:
    """Makes `attn_implementation=NAME` known to transformers; harmless when repeated."""
    from transformers import AttentionInterface, AttentionMaskInterface  # takes seconds: only when needed
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, softmax_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
