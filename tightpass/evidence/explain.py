"""Why the rank is what it is: which heads, distances and directions the numbers come from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tightpass.errors import TightpassError
from tightpass.evidence.grouped import grouped
from tightpass.jacobians.forms.base import Cost, Form
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
    """Of `of_attention`: the leading triplet, and each head's own closed form."""
    if kind != "attn" or kind not in shape.closed:
        return Work()
    size = tokens * shape.width
    top = work_of_svds(size, size, 1, itemsize, passing(cost.product_bytes(BLOCK, itemsize)))
    own = cost_of("head", tokens, shape)
    few = tokens <= ENERGIES_UP_TO
    each = passing(own.kept * itemsize + (own.norm * 8 if few else 0))
    path = passing(cost.norm * 8 if few else 0)
    return top.then(each, path).dropped()


def by_distance(energies: NDArray[np.float64]) -> tuple[tuple[int, float], ...] | None:
    """Shares of ‖J‖_F² by t − s, from the squared norms of the blocks (tokens_out, tokens_in); None for a zero J."""
    total = float(energies.sum())
    if total == 0 or energies.shape[0] != energies.shape[1]:
        return None
    T = len(energies)
    sums = [(k, float(np.trace(energies, offset=-k))) for k in range(-(T - 1), T)]
    return tuple((k, value / total) for k, value in sums if value > 0)


def of_attention(J: Jacobian, energy: float) -> tuple[HeadShares | None, PathShares | None]:
    """What the heads, and the two paths, of an attention J with this ‖J‖_F² add to it; None for all else, and for what cannot be
    had, or takes too long."""
    block = J.block
    if block is None or block.kind != "attn" or not J.form.heads_apart or energy == 0:
        return None, None
    try:
        top = svds(J, 1)
    except TightpassError:  # an explanation that cannot be had must not cost the answer
        return None, None
    u, v = top.U.reshape(-1), top.Vh.reshape(1, J.tokens_in, J.d_in)
    few, gains, own, apart = J.tokens_in <= ENERGIES_UP_TO, [], list[float | None](), list[tuple[float, float] | None]()
    for h in range(J.form.heads_apart):  # one after the other: each holds weights of its own
        head = closed_form(replace(block, options=replace(block.options, kind="head", head=h, residual=False)))
        if head is None:
            return None, None
        gains.append(float(u @ head.push(v).reshape(-1)))
        own.append(head.energy() if few else None)
        apart.append(_energies(head) if few else None)
    known = [value / energy for value in own if value is not None]
    heads = HeadShares(tuple(gains), tuple(known) if len(known) == len(own) else None)
    whole = _energies(J.form) if few else None
    return heads, None if whole is None else _shares(block, whole, [pair for pair in apart if pair is not None], energy)


def _shares(block: Block, whole: tuple[float, float], heads: list[tuple[float, float]], energy: float) -> PathShares:
    """Of both paths, and of those of the heads where all are known."""
    limits = grouped(block)
    values, pattern = (tuple(pair[i] / energy for pair in heads) for i in range(2))
    return PathShares(
        None if limits is None else (limits.values, limits.pattern),
        (whole[0] / energy, whole[1] / energy),
        (values, pattern) if len(heads) == block.layers[0].heads else None,
    )


def _energies(form: Form) -> tuple[float, float] | None:
    """‖J‖_F² of both paths."""
    both = form.paths()
    if both is None:
        return None
    values, pattern = (path.energy() for path in both)
    return None if values is None or pattern is None else (values, pattern)
