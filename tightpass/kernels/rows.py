"""Rows of weights, gathered, scaled and taken through a norm."""

from __future__ import annotations

from typing import Any

from tightpass.arrays import placement
from tightpass.errors import InputError
from tightpass.kernels.call import Call, shape_of
from tightpass.kernels.reference import rows as reference

Array = Any


def gather_rows(
    weight: Array,
    index: Array,
    slope: Array | None,
    out: Array,
    token: Array | None = None,
    norm: tuple[Array, Array] | None = None,
    threads: int | None = None,
    stream: int | None = None,
) -> Array:
    """out[i] = slope[i]·weight[index[i]], right-multiplied by the norm (x̂ (T, d), r (T)) at token[i]; returns `out`."""
    call = Call("gather_rows", "weight", weight)
    units, d = shape_of("weight", weight, 2, "(units, d)")
    n = len(index)
    call.add("weight", weight, (units, d), rows=True)
    where = call.add_indices("index", index, n, units)
    call.add("slope", slope, (n,), optional=True)
    if norm is not None and (len(norm) != 2 or any(part is None for part in norm)):
        raise InputError("norm: expected x̂ and r together, or None; got some of them")
    x, r = (None, None) if norm is None else norm
    tokens = 0 if x is None else (placement("x", x).shape or (0,))[0]
    if (token is None) != (norm is None):
        raise InputError("token: expected one for each row exactly where there is a norm")
    call.add("x", x, (tokens, d), rows=True, optional=True)
    call.add("r", r, (tokens,), optional=True)
    of = call.add_indices("token", token, n, tokens)
    call.add_output(out, (n, d))
    call.check_apart()
    if not call.run(threads, stream):
        reference.gather_rows(weight, where, slope, out, of, norm)
    return out
