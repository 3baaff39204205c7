"""Decisions that rounding may turn: a router's near-ties, and numbers next to where a clamp cuts them off."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tightpass.models.blocks import Block
from tightpass.models.decisions import Choice, Decision


def undecided(block: Block, other: torch.dtype, scale: float) -> tuple[list[int], int]:
    """By how many J's rank may change where each token's decisions fall otherwise, and where those do of which the token is not
    known.

    Each decision is made of numbers that are off by at most `scale` times their largest difference from those in the other
    precision. A number that may be cut off or not changes J by a matrix of rank one, a token that may go to another expert
    by its own rows.
    """
    made, there = block.decisions, block.in_precision(other).decide()
    within = [mine.within(_error(mine, theirs, scale)) for mine, theirs in zip(made, there, strict=True)]
    placed, unplaced = _cut_off(block, made, within)
    for t in _rows_of(block, _torn(block, made, within)):
        placed[t] += block.x.shape[1]
    return placed, unplaced


def _error(mine: Decision, theirs: Decision, scale: float) -> float:
    """Of all numbers that one decision is made of."""
    here, there = mine.values.double(), theirs.values.double()
    gap, size = (
        (a[a.isfinite()]).abs().amax() if a.isfinite().any() else a.new_zeros(()) for a in (here - there, here)
    )
    return scale * max(float(gap), float(size) * torch.finfo(torch.float32).eps)


def _cut_off(block: Block, made: tuple[Decision, ...], within: list[torch.Tensor]) -> tuple[list[int], int]:
    """Numbers next to a clamp's ends, of each token; and those of experts, that see tokens of their own."""
    placed, unplaced = torch.zeros(block.tokens, dtype=torch.long), 0
    experts = any(isinstance(decision, Choice) for decision in made)  # whose rows are in an order of their own
    for decision, near in zip(made, within, strict=True):
        if isinstance(decision, Choice):
            continue
        rows = near.flatten(0, -2).sum(-1).cpu()
        if len(rows) == block.tokens and not experts:
            placed += rows
        else:
            unplaced += int(rows.sum())
    return placed.tolist(), unplaced


def _torn(block: Block, made: tuple[Decision, ...], within: list[torch.Tensor]) -> Iterator[int]:
    """Tokens that may go to another expert."""
    for decision, near in zip(made, within, strict=True):
        if isinstance(decision, Choice):
            yield from near.reshape(block.tokens, -1).any(-1).nonzero().flatten().tolist()


def _rows_of(block: Block, torn: Iterator[int]) -> set[int]:
    """Output tokens that another expert for these would move: in layers behind, all that see them."""
    found = set(torn)
    if block.kind != "model" or not found:
        return found
    return set(range(min(found) if block.model.shape.causal else 0, block.tokens))
