"""Blocks of attention's Jacobian, checked and handed to the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from tightpass.arrays import Placement, placement
from tightpass.errors import InputError
from tightpass.kernels.call import Call, as_numpy, shape_of
from tightpass.kernels.reference import attention as reference

Array = Any
Norm = tuple[Array, Array, Array, Array, Array]


def attention_blocks(
    a: Array,
    vo: Array,
    vt: Array,
    rest: Array,
    p: Array,
    k: Array,
    q: Array,
    out: Array,
    columns: Sequence[int],
    diagonal: Sequence[int],
    first: Sequence[int] | None = None,
    norm: Norm | None = None,
    threads: int | None = None,
    stream: int | None = None,
) -> Array:
    """Blocks (t, s < columns[t]) of attention's Jacobian for some output tokens t, into `out`; returns it.

    a, vo       (rows, H, T) weights, (d_out, H, T) Wo_h v_s
    vt, rest    (d_out, H, rows) Wo_h v_u and Wo_h (o_t − v_u), u the token of row t's largest weight
    p, k, q     (H, d_out, d_in) Wo_h Wv_h, (rows, H, d_in) scale·q_t Wk_h, (rows, d_out, d_in) the term of
                block (t, diagonal[t]), which may be that very block of `out`; diagonal[t] = T: no block has it
    out         (rows, T, d_out, d_in), or packed (blocks, d_out, d_in) with first[t] the index of (t, 0)
    norm        px (d_out, H, T), kx (rows, H, T), qx (rows, d_out), x̂ (T, d_in), r (T), where the
                blocks are right-multiplied by a norm that is folded into p, k and q
    """
    call = Call("attention_blocks", "a", a)
    rows, H, T = shape_of("a", a, 3, "(rows, heads, tokens)")
    _, d_out, d_in = shape_of("p", p, 3, "(heads, d_out, d_in)")
    call.add("a", a, (rows, H, T))
    call.add("vo", vo, (d_out, H, T))
    call.add("vt", vt, (d_out, H, rows))
    call.add("rest", rest, (d_out, H, rows))
    call.add("p", p, (H, d_out, d_in), rows=True)
    call.add("k", k, (rows, H, d_in), rows=True)
    call.add("q", q, (rows, d_out, d_in), rows=True)
    _add_norm(call, norm, (rows, H, T, d_out, d_in))
    call.add_indices("columns", columns, rows, T + 1)
    call.add_indices("diagonal", diagonal, rows, T + 1)
    starts, steps = _add_blocks(call, out, (rows, T, d_out, d_in), columns, first)
    within = starts + as_numpy(diagonal) * steps[0]
    in_place = _is_diagonal(placement("q", q), placement("out", out), within, steps[1])
    call.check_apart(may_overlap="q" if in_place else None)
    if not call.run(threads, stream):
        reference.attention_blocks(a, vo, vt, rest, p, k, q, out, columns, diagonal, first, norm)
    return out


def _add_norm(call: Call, norm: Norm | None, sizes: tuple[int, int, int, int, int]) -> None:
    if norm is not None and (len(norm) != 5 or any(part is None for part in norm)):
        raise InputError("norm: expected px, kx, qx, x̂ and r together, or None; got some of them")
    rows, H, T, d_out, d_in = sizes
    px, kx, qx, x, r = (None,) * 5 if norm is None else norm
    call.add("px", px, (d_out, H, T), optional=True)
    call.add("kx", kx, (rows, H, T), optional=True)
    call.add("qx", qx, (rows, d_out), optional=True)
    call.add("x", x, (T, d_in), rows=True, optional=True)
    call.add("r", r, (T,), optional=True)


def _add_blocks(
    call: Call, out: Array, shape: tuple[int, ...], columns: Sequence[int], first: Sequence[int] | None
) -> tuple[np.ndarray, tuple[int, ...]]:
    """The output: where in it each row's first block starts, and how far blocks and their rows lie apart, in elements."""
    place = placement("out", out)
    rows, _, d_out, d_in = shape
    if first is None:
        call.add_output(out, shape)
        starts, steps = np.arange(rows) * place.strides[0], place.strides[1:3]
    else:
        ranges = _block_ranges(first, columns)
        if not place.shape or place.shape[0] < ranges[-1][1]:
            raise InputError(f"out: expected at least {ranges[-1][1]} blocks, got shape {place.shape}")
        call.add_output(out, (place.shape[0], d_out, d_in))
        starts, steps = as_numpy(first).astype(np.int64) * place.strides[0], place.strides[:2]
    call.add_indices("start", starts, rows, 2**62)
    call.given |= {"out": place.address, "block_stride": steps[0], "row_stride": steps[1]}
    return starts, steps


def _block_ranges(first: Sequence[int], columns: Sequence[int]) -> list[tuple[int, int]]:
    """(first, end) of each row's blocks in packed memory, sorted. Raises InputError if two rows share a block."""
    starts = as_numpy(first)
    if starts.shape != (len(columns),) or starts.dtype.kind not in "iu":
        raise InputError(f"first: expected {len(columns)} indices, one a row, got {first}")
    ranges = sorted((int(f), int(f) + int(c)) for f, c in zip(starts, columns, strict=True) if c) or [(0, 0)]
    if ranges[0][0] < 0 or any(after[0] < before[1] for before, after in pairwise(ranges)):
        raise InputError(f"first: expected indices of blocks that no two rows share, got {list(first)}")
    return ranges


def _is_diagonal(q: Placement, out: Placement, within: np.ndarray, row_stride: int) -> bool:
    """Whether q[t] is exactly the block of `out` that starts `within[t]` elements in."""
    size = np.dtype(out.dtype).itemsize
    steps = q.strides[0] * np.arange(len(within))
    return bool(np.all(q.address + steps * size == out.address + within * size)) and q.strides[1] == row_stride
