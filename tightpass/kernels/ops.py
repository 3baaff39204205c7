"""Every kernel once: arguments are validated, then the compiled kernel or the reference runs.

Arrays are NumPy's, torch's or CuPy's, all of one kind, one device and one precision (float32 or
float64). Axes of rows must be contiguous. What each operation computes is in `csrc/ops.h`, and
plainly in `reference.py`. Raises InputError, naming the argument, before any native code runs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from array_api_compat import array_namespace

from tightpass.arrays import DTYPES, Placement, kind, placement
from tightpass.errors import InputError, InstallationError
from tightpass.kernels import native
from tightpass.kernels.forks import check_threads
from tightpass.kernels.reference import blocks as reference
from tightpass.kernels.reference import svd as reference_svd

Array = Any
CORES = os.cpu_count() or 1


class _Call:
    """The checked arguments of one call; the first array decides precision and device."""

    def __init__(self, operation: str, name: str, first: Array) -> None:
        found = placement(name, first)
        if found.dtype not in DTYPES:
            raise InputError(f"{name}: expected float32 or float64, got {found.dtype}")
        self.operation, self.first, self.leader = operation, first, f"{name} ({found.dtype}, {found.device})"
        self.dtype, self.device = found.dtype, found.device
        self.given: dict[str, Any] = {}
        self.extents: dict[str, tuple[int, int]] = {}  # addresses of the first byte, and after the last one
        self.outputs: list[str] = []
        self.kept: list[Array] = []  # addresses outlive no array: the indices made here live as long as the call

    def add(
        self, name: str, array: Array | None, shape: Sequence[int], rows: bool = False, optional: bool = False
    ) -> None:
        """An array of a shape; with `rows`, its last axis must be contiguous. None is absent, where that is allowed."""
        if array is None and optional:
            self.given[name] = None
            return
        if isinstance(array, torch.Tensor) and array.is_neg():
            raise InputError(f"{name}: expected plain values, got a tensor with a pending negation; use resolve_neg()")
        if kind(array) != kind(self.first):
            raise InputError(f"{name}: expected a {kind(self.first)} like {self.leader}, got a {kind(array)}")
        found = placement(name, array)
        if found.dtype != self.dtype:
            raise InputError(f"{name}: expected {self.dtype} as {self.leader}, got {found.dtype}")
        if found.device != self.device:
            raise InputError(f"{name}: expected it on {self.device} as {self.leader}, got {found.device}")
        if found.shape != tuple(shape):
            raise InputError(f"{name}: expected shape {tuple(shape)}, got {found.shape}")
        if rows and found.shape[-1] > 1 and found.strides[-1] != 1:
            raise InputError(f"{name}: its last axis must be contiguous, got strides {found.strides} in elements")
        self.given[name] = found.handed_over
        self.extents[name] = found.extent

    def add_output(self, array: Array, shape: Sequence[int], name: str = "out") -> None:
        """An array that is written: its rows contiguous, and no two of its entries in one place."""
        self.add(name, array, shape, rows=True)
        self.outputs.append(name)
        found = placement(name, array)
        if not found.writable:
            raise InputError(f"{name}: expected an array that can be written to, got a read-only one")
        reach = 1
        for step, extent in sorted((s, n) for s, n in zip(found.strides, found.shape, strict=True) if n > 1):
            if step < reach:
                raise InputError(
                    f"{name}: entries overlap, or run backwards: strides {found.strides} of shape {found.shape}"
                )
            reach = step * (extent - 1) + reach

    def check_apart(self, may_overlap: str | None = None) -> None:
        """Raises InputError if an array shares memory with one that is written, but the one that may."""
        for output in self.outputs:
            low, high = self.extents[output]
            for name, (start, end) in self.extents.items():
                if name not in (output, may_overlap) and start < high and low < end:
                    raise InputError(f"{name}: shares memory with {output}; give a copy of one of them")

    def add_indices(self, name: str, values: Array | None, count: int, below: int) -> Array | None:
        """`count` integers in [0, below), as an int64 array beside the others."""
        if values is None:
            self.given[name] = None
            return None
        plain = _plain(values)
        if plain.shape != (count,) or plain.dtype.kind not in "iu":
            raise InputError(f"{name}: expected {count} integers, got shape {plain.shape} of {plain.dtype}")
        if count and not (plain.min() >= 0 and plain.max() < below):
            raise InputError(f"{name}: expected indices in [0, {below}), got {plain.min()} .. {plain.max()}")
        indices = _beside(plain.astype(np.int64), self.first)
        self.given[name] = placement(name, indices).handed_over
        self.kept.append(indices)
        return indices

    def kernel(self) -> Any | None:
        """The compiled kernel, or None where there is none for this device: the whole extension may be absent, and on a GPU
        the library may have the operation.

        Raises InstallationError where the extension lacks one of the processor's.
        """
        on_gpu = self.device.startswith("cuda")
        if native.extension is None or not (self.device == "cpu" or (on_gpu and native.extension.cuda_built())):
            return None
        compiled = getattr(native.extension, f"{'cuda' if on_gpu else 'cpu'}_{self.operation}_{self.dtype}", None)
        if compiled is None and not on_gpu:
            raise InstallationError(
                f"the compiled kernels lack {self.operation} in {self.dtype}: they are not of this version of the "
                f"package.\nInstall it anew, or set {native.SWITCH}=reference to do without them"
            )
        return compiled

    def run(self, threads: int | None, stream: int | None) -> bool:
        """Runs the compiled kernel; False where there is none for this device."""
        on_gpu = self.device.startswith("cuda")
        if stream is not None and not on_gpu:
            raise InputError(f"stream: expected None for arrays on {self.device}, got {stream}")
        compiled = self.kernel()
        if compiled is None:
            return False
        if on_gpu:
            with _on_device(self.first):
                queue = current_stream(self.first) if stream is None else stream
                compiled(self.given, queue)
                if queue != current_stream(self.first):  # the indices made here belong to the library's own stream
                    _wait_for(queue, self.first)
        else:
            compiled(self.given, self.threads(threads))
        return True

    @staticmethod
    def threads(wanted: int | None) -> int:
        """As many as torch uses where none are asked for. Raises InputError where they would never come."""
        count = torch.get_num_threads() if wanted is None else wanted
        if count < 1:
            raise InputError(f"threads: expected at least 1, got {count}")
        count = min(count, CORES)  # more threads than the system grants would end the process
        check_threads(count)
        return count


def _beside(values: np.ndarray, like: Array) -> Array:
    """A NumPy array as an array of the kind and on the device of `like`."""
    if isinstance(like, torch.Tensor):
        return torch.from_numpy(values).to(like.device)
    if isinstance(like, np.ndarray):
        return values
    import cupy

    return cupy.asarray(values)


def _zeros(shape: tuple[int, ...], like: Array) -> Array:
    """Of the kind, precision and device of `like`."""
    return (
        like.new_zeros(shape)
        if isinstance(like, torch.Tensor)
        else array_namespace(like).zeros(shape, dtype=like.dtype)
    )


def _empty(shape: tuple[int, ...], like: Array) -> Array:
    """Likewise, of any content."""
    if isinstance(like, torch.Tensor):
        return like.new_empty(shape)
    return array_namespace(like).empty(shape, dtype=like.dtype)


def _plain(values: Any) -> np.ndarray:
    """Indices of any kind as a NumPy array; an empty sequence has no kind of its own."""
    if isinstance(values, torch.Tensor):
        values = values.cpu()
    elif hasattr(values, "__cuda_array_interface__"):
        values = values.get()
    plain = np.ascontiguousarray(values)
    return plain if plain.size else plain.astype(np.int64)


def _on_device(array: Array) -> Any:
    """A context in which an array's device is the current one."""
    return torch.cuda.device(array.device) if isinstance(array, torch.Tensor) else array.device


def _wait_for(stream: int, array: Array) -> None:
    if isinstance(array, torch.Tensor):
        torch.cuda.ExternalStream(stream).synchronize()
        return
    import cupy

    cupy.cuda.ExternalStream(stream).synchronize()


def current_stream(array: Array) -> int:
    """Address of the stream that the array's library works on now."""
    if isinstance(array, torch.Tensor):
        return int(torch.cuda.current_stream(array.device).cuda_stream)
    import cupy

    return int(cupy.cuda.get_current_stream().ptr)


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
    norm: tuple[Array, Array, Array, Array, Array] | None = None,
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
    call = _Call("attention_blocks", "a", a)
    if len(placement("a", a).shape) != 3:
        raise InputError(f"a: expected (rows, heads, tokens), got shape {placement('a', a).shape}")
    rows, H, T = a.shape
    if len(placement("p", p).shape) != 3:
        raise InputError(f"p: expected (heads, d_out, d_in), got shape {placement('p', p).shape}")
    d_out, d_in = p.shape[1:]
    call.add("a", a, (rows, H, T))
    call.add("vo", vo, (d_out, H, T))
    call.add("vt", vt, (d_out, H, rows))
    call.add("rest", rest, (d_out, H, rows))
    call.add("p", p, (H, d_out, d_in), rows=True)
    call.add("k", k, (rows, H, d_in), rows=True)
    call.add("q", q, (rows, d_out, d_in), rows=True)
    if norm is not None and (len(norm) != 5 or any(part is None for part in norm)):
        raise InputError("norm: expected px, kx, qx, x̂ and r together, or None; got some of them")
    px, kx, qx, x, r = (None,) * 5 if norm is None else norm
    call.add("px", px, (d_out, H, T), optional=True)
    call.add("kx", kx, (rows, H, T), optional=True)
    call.add("qx", qx, (rows, d_out), optional=True)
    call.add("x", x, (T, d_in), rows=True, optional=True)
    call.add("r", r, (T,), optional=True)
    call.add_indices("columns", columns, rows, T + 1)
    call.add_indices("diagonal", diagonal, rows, T + 1)
    place = placement("out", out)
    if first is None:
        call.add_output(out, (rows, T, d_out, d_in))
        starts, steps = np.arange(rows) * place.strides[0], place.strides[1:3]
    else:
        ranges = _block_ranges(first, columns)
        if not place.shape or place.shape[0] < ranges[-1][1]:
            raise InputError(f"out: expected at least {ranges[-1][1]} blocks, got shape {place.shape}")
        call.add_output(out, (place.shape[0], d_out, d_in))
        starts, steps = _plain(first).astype(np.int64) * place.strides[0], place.strides[:2]
    call.add_indices("start", starts, rows, 2**62)
    within = starts + _plain(diagonal) * steps[0]
    call.check_apart(may_overlap="q" if _is_diagonal(placement("q", q), place, within, steps[1]) else None)
    call.given |= {"out": place.address, "block_stride": steps[0], "row_stride": steps[1]}
    if not call.run(threads, stream):
        reference.attention_blocks(a, vo, vt, rest, p, k, q, out, columns, diagonal, first, norm)
    return out


def _is_diagonal(q: Placement, out: Placement, within: np.ndarray, row_stride: int) -> bool:
    """Whether q[t] is exactly the block of `out` that starts `within[t]` elements in."""
    size = np.dtype(out.dtype).itemsize
    steps = q.strides[0] * np.arange(len(within))
    return bool(np.all(q.address + steps * size == out.address + within * size)) and q.strides[1] == row_stride


def _block_ranges(first: Sequence[int], columns: Sequence[int]) -> list[tuple[int, int]]:
    """(first, end) of each row's blocks in packed memory, sorted. Raises InputError if two rows share a block."""
    starts = _plain(first)
    if starts.shape != (len(columns),) or starts.dtype.kind not in "iu":
        raise InputError(f"first: expected {len(columns)} indices, one a row, got {first}")
    ranges = sorted((int(f), int(f) + int(c)) for f, c in zip(starts, columns, strict=True) if c) or [(0, 0)]
    if ranges[0][0] < 0 or any(after[0] < before[1] for before, after in pairwise(ranges)):
        raise InputError(f"first: expected indices of blocks that no two rows share, got {list(first)}")
    return ranges


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
    """out[i] = slope[i]·weight[index[i]], right-multiplied by the norm (x̂ (T, d), r (T)) at token[i]."""
    call = _Call("gather_rows", "weight", weight)
    if len(placement("weight", weight).shape) != 2:
        raise InputError(f"weight: expected (units, d), got shape {placement('weight', weight).shape}")
    units, d = weight.shape
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


def norm_right(
    m: Array,
    x: Array,
    r: float,
    out: Array,
    gamma: Array | None = None,
    centred: bool = True,
    threads: int | None = None,
    stream: int | None = None,
) -> Array:
    """out = m·dN: each row of m (n, d) times the Jacobian of a LayerNorm, or of an RMSNorm (centred=False).

    x, r   normalised input x̂ (d,) and its scale r = 1/√(var + ε); `out` may be m
    """
    call = _Call("norm_right", "m", m)
    if len(placement("m", m).shape) != 2:
        raise InputError(f"m: expected (n, d), got shape {placement('m', m).shape}")
    n, d = m.shape
    call.add("m", m, (n, d), rows=True)
    call.add("x", x, (d,), rows=True)
    call.add("gamma", gamma, (d,), rows=True, optional=True)
    call.add_output(out, (n, d))
    mine, theirs = placement("m", m), placement("out", out)
    call.check_apart(may_overlap="m" if (mine.address, mine.strides) == (theirs.address, theirs.strides) else None)
    call.given |= {"r": float(r), "centred": bool(centred)}
    if not call.run(threads, stream):
        reference.norm_right(m, x, r, out, gamma, centred)
    return out


def product(a: Array, x: Array, threads: int | None = None) -> Array:
    """a·x for a (m, n) of contiguous rows and few columns x (n, w), at the speed of memory; a new array (m, w)."""
    return _skinny("product", a, "x", x, threads)


def adjoint_product(a: Array, y: Array, threads: int | None = None) -> Array:
    """aᵀ·y for a (m, n) of contiguous rows and few columns y (m, w), at the speed of memory; a new array (n, w)."""
    return _skinny("adjoint_product", a, "y", y, threads)


def _skinny(operation: str, a: Array, name: str, x: Array, threads: int | None) -> Array:
    """The columns are filled up with zeros to a multiple of 16."""
    call = _Call(operation, "a", a)
    m, n = _matrix("a", a)
    depth, rows = (n, m) if operation == "product" else (m, n)
    found, columns = _matrix(name, x)
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
    if not (depth and rows and columns) or not call.run(threads, None):
        return a @ x if operation == "product" else a.T @ x
    return out[:, :columns]


def block_product(
    blocks: Array, rows: Sequence[int], columns: Sequence[int], v: Array, high: Array, low: Array,
    adjoint: bool = False, threads: int | None = None,
) -> None:  # fmt: skip
    """high + low += Σ blocks·v in twice float64's precision: block b (m, n) lies at (rows[b], columns[b]).

    blocks      (count, m, n) float64
    v           (tokens_in, n); with `adjoint`, which multiplies by the blocks' transposes, (tokens_out, m)
    high, low   (tokens_out, m), or (tokens_in, n): two parts of sums that go on from call to call
    """
    call = _Call("block_product", "blocks", blocks)
    if call.dtype != "float64" or len(placement("blocks", blocks).shape) != 3:
        raise InputError(
            f"blocks: expected float64 (count, m, n), got {call.dtype} {placement('blocks', blocks).shape}"
        )
    count, m, n = blocks.shape
    into, of = (n, m) if adjoint else (m, n)
    tokens, others = _matrix("v", v)[0], _matrix("high", high)[0]
    call.add("blocks", blocks, (count, m, n), rows=True)
    call.add_indices("rows", rows, count, tokens if adjoint else others)
    call.add_indices("columns", columns, count, others if adjoint else tokens)
    call.add("v", v, (tokens, of), rows=True)
    call.add_output(high, (others, into), "high")
    call.add_output(low, (others, into), "low")
    call.check_apart()
    call.given |= {"adjoint": adjoint}
    if not call.run(threads, None):
        reference.block_product(blocks, rows, columns, v, high, low, adjoint)


WIDTHS = range(16, 129, 16)
"""Widths of a band."""
PROBES = 6
"""At most as many probes."""


def band_reduction(
    a: Array, band: Array, left: Array, right: Array, width: int, threads: int | None = None, stream: int | None = None
) -> Array:
    """Q₁ᵀ·A·P₁ = upper band, into `band`, which holds zeros before; returns it. Destroys `a`.

    a            (m, n) with m ≥ n ≥ 1, contiguous rows
    band         (rows ≥ n, 3·width): entry (i, j) at column width + j − i
    left, right  (≥ m, p) and (≥ n, p): become Q₁ᵀ·left and P₁ᵀ·right, p ≤ 6
    width        a multiple of 16, at most 128
    """
    call = _Call("band_reduction", "a", a)
    m, n = _matrix("a", a)
    if not m >= n >= 1:
        raise InputError(f"a: expected (m, n) with m ≥ n ≥ 1, got shape {(m, n)}")
    _check_width(width)
    call.add_output(a, (m, n), "a")
    _add_band(call, band, left, right, width, n, (m, n))
    call.check_apart()
    if not call.run(threads, stream):
        reference_svd.band_reduction(a, band, left, right, width)
    return band


def bulge_chase(
    band: Array, left: Array, right: Array, n: int, width: int, threads: int | None = None, stream: int | None = None
) -> Array:
    """Q₂ᵀ·B·P₂ = upper bidiagonal, in place of the band of `band_reduction`; returns it.

    band, left, right   (n + 2·width, ·) each, zeros after row n; the diagonal is left in column `width` of the
                        band, the superdiagonal in the next
    """
    call = _Call("bulge_chase", "band", band)
    _check_width(width)
    if n < 1:
        raise InputError(f"n: expected at least 1, got {n}")
    rows = n + 2 * width
    _add_band(call, band, left, right, width, rows, (rows, rows))
    if not placement("band", band).contiguous:
        raise InputError(f"band: expected a contiguous array, got strides {placement('band', band).strides}")
    call.check_apart()
    call.given |= {"n": n}
    if not call.run(threads, stream):
        reference_svd.bulge_chase(band, left, right, n, width)
    return band


def two_stage(
    a: Array, probes: Array, width: int, in_place: bool = False, threads: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, float]] | None:
    """All singular values in one native call; None where there is none for this device.

    a        (m, n) with m ≥ n ≥ 1, any strides; destroyed with `in_place`, which needs contiguous rows
    probes   (4, n): Zᵀ

    Returns, of A divided by a power of two: d (n,) and e (n − 1,) in float64, the values (n,) in A's precision, and
    what probes and counts tell (`ReductionCheck` in csrc/ops.h).
    """
    call = _Call("two_stage", "a", a)
    m, n = _matrix("a", a)
    if not m >= n >= 1:
        raise InputError(f"a: expected (m, n) with m ≥ n ≥ 1, got shape {(m, n)}")
    _check_width(width)
    if in_place:
        call.add_output(a, (m, n), "a")
    else:
        call.add("a", a, (m, n))
    call.add("probes", probes, (4, n), rows=True)
    call.check_apart()
    compiled = call.kernel() if call.device == "cpu" else None
    if compiled is None:
        return None
    d, e, values = np.empty(n), np.empty(n - 1), np.empty(n, dtype=call.dtype)
    for name, made in (("d", d), ("e", e), ("values", values)):  # fresh: nothing to check
        call.given[name] = made.__array_interface__["data"][0], made.shape, (1,)
    call.given |= {"width": width, "in_place": in_place}
    return d, e, values, compiled(call.given, call.threads(threads))


def bisection(
    d: Array, e: Array, absolute: float, relative: float, threads: int | None = None, stream: int | None = None
) -> Array:
    """Singular values, descending, of the upper bidiagonal matrix of diagonal d (n,) and superdiagonal e (n − 1,).

    float64. Each is bracketed to max(absolute, relative·σ) by Sturm counts; 0 where the bracket reaches zero. Entries
    must lie within 1e±150, so that squares stay in range.
    """
    call = _bidiagonal("bisection", d, e)
    for name, value in (("absolute", absolute), ("relative", relative)):
        if not 0 <= value < float("inf"):
            raise InputError(f"{name}: expected a number ≥ 0, got {value}")
    values = _beside(np.empty(d.shape[0]), d)
    call.add_output(values, tuple(d.shape), "values")
    call.given |= {"absolute": float(absolute), "relative": float(relative)}
    if not call.run(threads, stream):
        return _beside(reference_svd.bisection(_plain(d), _plain(e), absolute, relative), d)
    return values


def sturm_counts(d: Array, e: Array, taus: Array, threads: int | None = None, stream: int | None = None) -> Array:
    """#{σ < τ} of the bidiagonal matrix for each τ ≥ 0 of taus (k,), as int64."""
    call = _bidiagonal("sturm_counts", d, e)
    call.add("taus", taus, (len(taus),))
    counts = _beside(np.zeros(len(taus), dtype=np.int64), d)
    call.given["counts"] = placement("counts", counts).handed_over
    if not call.run(threads, stream):
        return _beside(reference_svd.sturm_counts(_plain(d), _plain(e), _plain(taus)), d)
    return counts


def _bidiagonal(operation: str, d: Array, e: Array) -> _Call:
    call = _Call(operation, "d", d)
    if call.dtype != "float64":
        raise InputError(f"d: expected float64, got {call.dtype}")
    if len(placement("d", d).shape) != 1 or d.shape[0] < 1:
        raise InputError(f"d: expected at least one value in a row, got shape {tuple(d.shape)}")
    call.add("d", d, tuple(d.shape))
    call.add("e", e, (d.shape[0] - 1,))
    return call


def _matrix(name: str, array: Array) -> tuple[int, int]:
    shape = placement(name, array).shape
    if len(shape) != 2:
        raise InputError(f"{name}: expected a matrix, got shape {shape}")
    return shape[0], shape[1]


def _check_width(width: int) -> None:
    if width not in WIDTHS:
        raise InputError(f"width: expected a multiple of 16 up to 128, got {width}")


def _add_band(
    call: _Call, band: Array, left: Array, right: Array, width: int, rows: int, probed: tuple[int, int]
) -> None:
    """The band and the probes; each may have more rows than it needs."""
    found = {name: _matrix(name, array) for name, array in (("band", band), ("left", left), ("right", right))}
    probes = found["left"][1]
    if probes > PROBES:
        raise InputError(f"left: expected at most {PROBES} columns, got {probes}")
    wanted = {"band": (rows, 3 * width), "left": (probed[0], probes), "right": (probed[1], probes)}
    for name, array in (("band", band), ("left", left), ("right", right)):
        if found[name][0] < wanted[name][0]:
            raise InputError(f"{name}: expected at least {wanted[name][0]} rows, got shape {found[name]}")
        call.add_output(array, (found[name][0], wanted[name][1]), name)
    call.given |= {"width": width}
