"""Products of a large matrix with few columns, and of stored blocks with a vector in twice float64's precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from array_api_compat import array_namespace

from tightpass.arrays import placement
from tightpass.errors import InputError
from tightpass.kernels.call import Call, shape_of
from tightpass.kernels.reference import products as reference

Array = Any


def product(a: Array, x: Array, threads: int | None = None) -> Array:
    """a·x for a (m, n) of contiguous rows and few columns x (n, w), at the speed of memory; a new array (m, w)."""
    return _skinny("product", a, "x", x, threads)


def adjoint_product(a: Array, y: Array, threads: int | None = None) -> Array:
    """aᵀ·y for a (m, n) of contiguous rows and few columns y (m, w), at the speed of memory; a new array (n, w)."""
    return _skinny("adjoint_product", a, "y", y, threads)


def _skinny(operation: str, a: Array, name: str, x: Array, threads: int | None) -> Array:
    """The columns are filled up with zeros to a multiple of 16."""
    call = Call(operation, "a", a)
    m, n = shape_of("a", a, 2, "a matrix")
    depth, rows = (n, m) if operation == "product" else (m, n)
    found, columns = shape_of(name, x, 2, "a matrix")
    if found != depth:
        raise InputError(f"{name}: expected {depth} rows, got shape {(found, columns)}")
    call.add("a", a, (m, n), rows=True)
    width = -(-columns // 16) * 16
    padded = x
    if width != columns or (placement(name, x).strides[1] != 1):
        padded = _zeros((depth, width), a)
        padded[:, :columns] = x
    out = _empty((rows, width), a)
    call.add(name, padded, (depth, width), rows=True)
    call.add_output(out, (rows, width))
    if not (depth and rows and columns) or not call.run(threads):
        return a @ x if operation == "product" else a.T @ x
    return out[:, :columns]


def _zeros(shape: tuple[int, ...], like: Array) -> Array:
    """Of the kind, precision and device of `like`."""
    if isinstance(like, torch.Tensor):
        return like.new_zeros(shape)
    return array_namespace(like).zeros(shape, dtype=like.dtype)


def _empty(shape: tuple[int, ...], like: Array) -> Array:
    """Likewise, of any content."""
    if isinstance(like, torch.Tensor):
        return like.new_empty(shape)
    return array_namespace(like).empty(shape, dtype=like.dtype)


def block_product(
    blocks: Array, rows: Sequence[int], columns: Sequence[int], v: Array, high: Array, low: Array,
    adjoint: bool = False, threads: int | None = None,
) -> None:  # fmt: skip
    """high + low += Σ blocks·v in twice float64's precision: block b (m, n) lies at (rows[b], columns[b]).

    blocks      (count, m, n) float64
    v           (tokens_in, n); with `adjoint`, which multiplies by the blocks' transposes, (tokens_out, m)
    high, low   (tokens_out, m), or (tokens_in, n): two parts of sums that go on from call to call
    """
    call = Call("block_product", "blocks", blocks)
    shape = placement("blocks", blocks).shape
    if call.dtype != "float64" or len(shape) != 3:
        raise InputError(f"blocks: expected float64 (count, m, n), got {call.dtype} {shape}")
    count, m, n = shape
    into, of = (n, m) if adjoint else (m, n)
    tokens, others = (shape_of(name, array, 2, "a matrix")[0] for name, array in (("v", v), ("high", high)))
    call.add("blocks", blocks, (count, m, n), rows=True)
    call.add_indices("rows", rows, count, tokens if adjoint else others)
    call.add_indices("columns", columns, count, others if adjoint else tokens)
    call.add("v", v, (tokens, of), rows=True)
    call.add_output(high, (others, into), "high")
    call.add_output(low, (others, into), "low")
    call.check_apart()
    call.given |= {"adjoint": adjoint}
    if not call.run(threads):
        reference.block_product(blocks, rows, columns, v, high, low, adjoint)
