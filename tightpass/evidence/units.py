"""What a Jacobian hangs on: which ReLU units are active and which are too close to zero to tell, and decisions as near."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from tightpass.evidence.decided import undecided as decisions_undecided
from tightpass.models.blocks import Block, depth_of, work_of_copy
from tightpass.models.capture import Call
from tightpass.models.linear import linear_map
from tightpass.models.parts import LayerParts
from tightpass.models.shape import Shape
from tightpass.work import Work, kept, passing

SAFETY = 4.0
OTHER = {torch.float64: torch.float32, torch.float32: torch.float64}


@dataclass(frozen=True)
class Units:
    """ReLU units of the MLPs inside a block, those apart that are connected to nothing on one side: J has no part of them.

    active       active units of each token, of the only MLP inside (None for more or none)
    undecided    units of each token whose sign is within their own rounding error, and by how many its rank changes where other
                 decisions of it fall otherwise (None where there are none such, or it is not known of which token they are)
    unplaced     all of those, in the latter case
    """

    active: tuple[int, ...] | None
    undecided: tuple[int, ...] | None
    unplaced: int = 0

    @property
    def kinks(self) -> int:
        """Undecided ones of all tokens."""
        return sum(self.undecided or ()) + self.unplaced


def units(block: Block) -> Units:
    """Counts active units and kinks, and adds what near-ties of decisions may change."""
    found = _relu_units(block)
    if not block.decisions:
        return found
    placed, unplaced = decisions_undecided(block, OTHER[block.x.dtype], _scale(block))
    if unplaced:
        return Units(None, None, found.kinks + sum(placed) + unplaced)
    mine = found.undecided or (0,) * block.tokens
    return Units(found.active, tuple(a + b for a, b in zip(mine, placed, strict=True)))


def _scale(block: Block) -> float:
    """Of an error, from how far the other precision is off."""
    return SAFETY if block.x.dtype == torch.float32 else SAFETY * 2.0**-29


def _relu_units(block: Block) -> Units:
    """Counts active units and kinks, by the same block in the other precision.

    A pre-activation z = w·h + b carries an error of at most r·(|w|·|h| + |b|). r is the
    largest such ratio between the two precisions, over all units, times 4, and times 2⁻²⁹ where the
    block itself is the float64 one. A unit with |z| below that error is a kink.
    """
    if not block.has_relu_units:
        return Units(None, None)
    here, there = block.unit_calls(), block.in_precision(OTHER[block.x.dtype]).unit_calls()
    undecided = torch.zeros(block.tokens, dtype=torch.long)
    for parts, mine, theirs in zip(block.layers, here, there, strict=True):
        reach = magnitude(parts.plain_mlp[0], mine)
        error = (mine.y.double() - theirs.y.double()).abs().reshape(reach.shape)
        ratio = float((error / reach.clamp_min(torch.finfo(torch.float64).tiny)).max())
        ratio = max(ratio, torch.finfo(torch.float32).eps)
        within = mine.y.double().abs().reshape(reach.shape) <= _scale(block) * ratio * reach
        undecided += (within & connected(parts)).sum(-1).cpu()
    active = None
    if len(here) == 1:
        counts = ((here[0].y > 0).reshape(block.tokens, -1) & connected(block.layers[0])).sum(-1)
        active = tuple(int(c) for c in counts)
    return Units(active, tuple(int(c) for c in undecided))


def work_of(shape: Shape, kind: str, tokens: int, itemsize: int) -> Work:
    """Of `units`: the block in the other precision, the units of both, and the first map's weights in float64, in magnitude."""
    if kind in ("attn", "head") or not (shape.widest.relu or shape.widest.routed):
        return Work()
    other, d_ff = work_of_copy(shape, kind, 12 - itemsize), shape.widest.d_ff
    if not shape.widest.relu:
        return other.dropped()
    calls = kept(depth_of(shape, kind) * 12 * tokens * d_ff)
    wide = 8 if itemsize == 8 else 16  # as they are, they need no copy in float64
    return other.then(calls, passing(wide * shape.width * d_ff + 40 * tokens * d_ff)).dropped()


def connected(parts: LayerParts) -> torch.Tensor:
    """Units (d_ff,) that read something and are read by something; the others' derivative is zero either way."""
    first, _, last = parts.plain_mlp
    (up, _), (down, _) = linear_map(first), linear_map(last)
    return (up != 0).any(1) & (down != 0).any(0)


def magnitude(up: nn.Module, call: Call) -> torch.Tensor:
    """|w|·|h| + |b| of every unit, (tokens, d_ff), float64."""
    weight, bias = linear_map(up)
    h = call.x.double().abs().reshape(-1, call.x.shape[-1])
    reach: torch.Tensor = h @ weight.double().abs().T
    return reach + bias.double().abs()
