"""Why the rank is what it is: which heads, distances and directions the numbers come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tightpass.errors import TightpassError
from tightpass.evidence.grouped import grouped
from tightpass.jacobians.forms.base import Cost, Form, Piece
from tightpass.jacobians.forms.closed import closed_form, cost_of
from tightpass.jacobians.operator import Jacobian
from tightpass.models.blocks import Block
from tightpass.models.shape import Shape
from tightpass.rank.records import HeadShares, PathShares
from tightpass.spectra.leading.krylov import BLOCK, svds
from tightpass.spectra.leading.krylov import work_of as work_of_svds
from tightpass.work import Work, passing

ENERGIES_UP_TO = 256
"""Tokens up to which the heads' own ‖J_h‖_F² are computed: each takes T diagonal blocks."""


def work_of(cost: Cost, kind: str, tokens: int, shape: Shape, itemsize: int) -> Work:
    """Of `by_head`: the leading triplet, and each head's own closed form."""
    if kind != "attn" or kind not in shape.closed:
        return Work()
    size = tokens * shape.width
    top = work_of_svds(size, size, 1, itemsize, passing(cost.product_bytes(BLOCK, itemsize)))
    own = cost_of("head", tokens, shape)
    norm = own.norm * 8 if tokens <= ENERGIES_UP_TO else 0
    return top.then(passing(own.kept * itemsize + norm)).dropped()


def by_distance(energies: NDArray[np.float64]) -> tuple[tuple[int, float], ...] | None:
    """Shares of ‖J‖_F² by t − s, from the squared norms of the blocks (tokens_out, tokens_in); None for a zero J."""
    total = float(energies.sum())
    if total == 0 or energies.shape[0] != energies.shape[1]:
        return None
    T = len(energies)
    sums = [(k, float(np.trace(energies, offset=-k))) for k in range(-(T - 1), T)]
    return tuple((k, value / total) for k, value in sums if value > 0)


def by_head(J: Jacobian, energy: float) -> HeadShares | None:
    """Contributions of the heads of an attention J with this ‖J‖_F²; None for all else."""
    block = J.block
    if block is None or block.kind != "attn" or not J.form.heads_apart or energy == 0:
        return None
    try:
        top = svds(J, 1)
    except TightpassError:  # an explanation that cannot be had must not cost the answer
        return None
    u, v = top.U.reshape(-1), top.Vh.reshape(1, J.tokens_in, J.d_in)
    gains, energies = [], []
    for head in _heads(J.form.heads_apart, block):
        if head is None:
            return None
        gains.append(float(u @ head.push(v).reshape(-1)))
        if J.tokens_in <= ENERGIES_UP_TO and (own := head.energy()) is not None:
            energies.append(own / energy)
    return HeadShares(tuple(gains), tuple(energies) or None)


def _heads(count: int, block: Block) -> Iterator[Piece | None]:
    """The closed form of each head by itself, one after the other."""
    for h in range(count):
        yield closed_form(replace(block, options=replace(block.options, kind="head", head=h, residual=False)))


def by_path(J: Jacobian, energy: float) -> PathShares | None:
    """Contributions of the two paths of an attention J with this ‖J‖_F²; None for all else, and where they take too long."""
    block = J.block
    if block is None or block.kind != "attn" or energy == 0 or J.tokens_in > ENERGIES_UP_TO:
        return None
    if (whole := _energies(J.form)) is None:
        return None
    limits = grouped(block)
    each = [None if head is None else _energies(head) for head in _heads(J.form.heads_apart, block)]
    apart = [pair for pair in each if pair is not None]
    values, pattern = ([pair[i] / energy for pair in apart] for i in range(2))
    return PathShares(
        None if limits is None else (limits.values, limits.pattern),
        (whole[0] / energy, whole[1] / energy),
        (tuple(values), tuple(pattern)) if len(apart) == len(each) else None,
    )


def _energies(form: Form) -> tuple[float, float] | None:
    """‖J‖_F² of both paths."""
    both = form.paths()
    values, pattern = (None, None) if both is None else (path.energy() for path in both)
    return None if values is None or pattern is None else (values, pattern)
