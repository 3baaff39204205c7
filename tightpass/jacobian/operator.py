"""The Jacobian of a map of (tokens, d) tensors as a linear operator.

Rows and columns are flattened token by token: column s·d + j is feature j of input token s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch

from tightpass import doors
from tightpass.errors import InputError
from tightpass.jacobian.attention import ClosedAttention
from tightpass.jacobian.autodiff import Function, Linearisation, chunk_size
from tightpass.jacobian.closed import ClosedForm, closed_form
from tightpass.jacobian.diagnose import WHO_KNOWS, check_function, diagnosis
from tightpass.jacobian.mlp import ClosedMLP
from tightpass.jacobian.perturbed import rounding
from tightpass.jacobian.precision import check_precision_settings
from tightpass.jacobian.probe import check_structure
from tightpass.kernels import native
from tightpass.kernels.forks import check_threads
from tightpass.memory import bytes_of
from tightpass.models.blocks import Block
from tightpass.structure import BlockDiagonal, Dense, Structure

Array = TypeVar("Array", np.ndarray, torch.Tensor)
PANEL_ELEMENTS = 2_500_000  # of a group of blocks: the same tokens in every precision
# Of each (columns, tokens, width) intermediate of a closed form's product. Under 32 MiB the allocator reuses its heap
# instead of mapping fresh pages for every one (as in `autodiff.ARENA_BYTES`).
PRODUCT_BYTES = 26 * 2**20
# Output tokens of an attention whose structure is probed: of long ones, every product is dear. Its closed form, which
# holds no other blocks, is compared with automatic differentiation for all tokens besides.
PROBED = 64


@dataclass(frozen=True)
class Panel:
    """Some non-zero blocks: `blocks[i]`, (d_out, d_in), is J's block (rows[i], columns[i])."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    blocks: torch.Tensor


class Jacobian:
    """J = dy/dx, shape (tokens_out·d_out, tokens_in·d_in), formed only where asked for.

    Blocks that have a closed form (`form`) use it; all else is automatic differentiation.

    Supports `J @ X`, `J.T @ Y`, matvec, rmatvec, matmat, rmatmat, for NumPy arrays and torch tensors
    of J's dtype (the answer is of the same kind); `panels()` writes out the blocks that
    the structure allows; `dense()`; `to_scipy()`.
    """

    def __init__(
        self,
        fn: Function,
        x: torch.Tensor,
        structure: Structure | None = None,
        block: Block | None = None,
        memory: int | None = None,
    ) -> None:
        check_precision_settings()
        if (
            not isinstance(x, torch.Tensor)
            or not _is_plain(x)
            or x.ndim != 2
            or x.dtype not in (torch.float32, torch.float64)
            or 0 in x.shape
        ):
            raise InputError(f"x must be a floating (tokens, d) tensor of torch, got a {_described(x)}")
        if not bool(x.isfinite().all()):
            raise InputError("x must be finite, got NaN or infinite entries")
        if not callable(fn):
            raise InputError(f"jacobian expects a block or a function of a tensor, got {type(fn).__name__}")
        # a copy: the caller may change its own afterwards
        self.x, self.block, self.memory = x.detach().clone(memory_format=torch.contiguous_format), block, memory
        self.structure = Dense() if structure is None else structure
        self._width = block.width if block is not None else 8 * x.shape[1]
        self.form: ClosedForm | None = None if block is None else closed_form(block)
        self._whole = Linearisation(fn, self.x, self._columns(x.shape[0]))
        self.looked = () if block is not None else (check_function(self._whole),)
        y = self._whole.y
        self.tokens_out, self.d_out = y.shape
        self.tokens_in, self.d_in = x.shape
        if not isinstance(self.structure, Dense):
            if self.tokens_out != self.tokens_in:
                raise InputError(
                    f"{self.structure.name} needs as many output as input tokens, got {self.tokens_out} and {self.tokens_in}"
                )
            check_structure(self._whole, self.structure, PROBED if isinstance(self.form, ClosedAttention) else None)

    def _columns(self, tokens: int) -> int:
        return chunk_size(tokens * self._width * self.x.itemsize, self.memory)

    @property
    def name(self) -> str:
        return "J" if self.block is None else self.block.name

    @property
    def route(self) -> str:
        """How products and blocks are computed, in words."""
        if self.form is None:
            return "automatic differentiation"
        return f"closed form, kernels: {native.description(self.device.type)}"

    @property
    def differentiated(self) -> Linearisation:
        """Automatic differentiation of the same function, whatever products use."""
        return self._whole

    def diagnosis(self) -> str:
        """Why blocks of a function's Jacobian, in reverse mode, and products, in forward mode, disagree; in words."""
        return diagnosis(self._whole) or WHO_KNOWS

    @property
    def shape(self) -> tuple[int, int]:
        return self.tokens_out * self.d_out, self.tokens_in * self.d_in

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    @property
    def device(self) -> torch.device:
        return self.x.device

    @cached_property
    def T(self) -> Transposed:
        return Transposed(self)

    def __matmul__(self, X: Array) -> Array:
        return self._forward(X, "J @ x" if getattr(X, "ndim", 2) == 1 else "J @ X")

    def matvec(self, x: Array) -> Array:
        """J x for x of shape (N_in,)."""
        return self._forward(x, "matvec", (1,))

    def rmatvec(self, y: Array) -> Array:
        """Jᵀ y for y of shape (N_out,)."""
        return self._backward(y, "rmatvec", (1,))

    def matmat(self, X: Array) -> Array:
        """J X for X of shape (N_in, k)."""
        return self._forward(X, "matmat", (2,))

    def rmatmat(self, Y: Array) -> Array:
        """Jᵀ Y for Y of shape (N_out, k)."""
        return self._backward(Y, "rmatmat", (2,))

    def _forward(self, X: Array, words: str, axes: tuple[int, ...] = (1, 2)) -> Array:
        """J X. `words`: the operation as the caller wrote it; `axes`: how many X may have."""
        columns = self._operand(X, self.shape[1], words, axes)
        out = self.push(_by_token(columns, self.tokens_in))
        return _like(out.reshape(len(out), self.shape[0]).T, X)

    def _backward(self, Y: Array, words: str, axes: tuple[int, ...] = (1, 2)) -> Array:
        """Jᵀ Y, likewise."""
        columns = self._operand(Y, self.shape[0], words, axes)
        out = self.pull(_by_token(columns, self.tokens_out))
        return _like(out.reshape(len(out), self.shape[1]).T, Y)

    def push(self, tangents: torch.Tensor) -> torch.Tensor:
        """(k, tokens_in, d_in) tangents -> (k, tokens_out, d_out)."""
        if not len(tangents):
            return tangents.new_zeros(0, self.tokens_out, self.d_out)
        if self.form is None:
            return self._whole.push(tangents)
        return self._in_parts(self.form, self.form.push, tangents)

    def pull(self, cotangents: torch.Tensor) -> torch.Tensor:
        """(k, tokens_out, d_out) cotangents -> (k, tokens_in, d_in)."""
        if not len(cotangents):
            return cotangents.new_zeros(0, self.tokens_in, self.d_in)
        if self.form is None:
            return self._whole.pull(cotangents)
        return self._in_parts(self.form, self.form.pull, cotangents)

    def _in_parts(self, form: ClosedForm, product: Function, columns: torch.Tensor) -> torch.Tensor:
        """A product of a closed form, as many columns at once as `PRODUCT_BYTES` allow."""
        budget = PRODUCT_BYTES if self.memory is None else min(PRODUCT_BYTES, self.memory // 16)
        step = max(1, budget // (self.tokens_in * form.width * self.x.itemsize))
        with torch.no_grad():
            if len(columns) <= step:
                return product(columns)
            return torch.cat([product(part) for part in columns.split(step)])

    def _operand(self, X: Any, rows: int, words: str, axes: tuple[int, ...]) -> torch.Tensor:
        """X as columns (rows, k). Raises InputError, in the words of the operation, for what cannot be multiplied."""
        tensor = _tensor(X, words)
        if tensor.ndim not in axes or tensor.shape[0] != rows:
            meant = {1: f"({rows},)", 2: f"({rows}, k)"}
            expected = meant[tensor.ndim] if tensor.ndim in axes else " or ".join(meant[n] for n in axes)
            hint = ""
            if tensor.ndim in meant and tensor.ndim not in axes:
                hint = "; use matmat for several columns" if axes == (1,) else "; use matvec for one"
            raise InputError(f"{words} expects shape {expected}, got {tuple(tensor.shape)}{hint}")
        if tensor.dtype != self.dtype:
            raise InputError(
                f"{words} expects {self.dtype}, got {tensor.dtype}; convert it, or load the model in that dtype"
            )
        check_threads(torch.get_num_threads())
        columns = tensor.detach().to(self.device)
        return columns[:, None] if columns.ndim == 1 else columns

    def panels(self) -> Iterator[Panel]:
        """The non-zero blocks, a few tokens at a time, in the order of (row, column).

        Block-diagonal: groups of tokens; otherwise one output token after the other.
        """
        if isinstance(self.structure, BlockDiagonal):
            yield from self._diagonal_panels()
            return
        if isinstance(self.form, ClosedAttention):
            yield from self._attention_panels(self.form)
            return
        for t in range(self.tokens_out):
            yield self.block_row(t)

    def block_row(self, t: int) -> Panel:
        """The non-zero blocks of output token t. Raises InputError for a token that is not there."""
        t = doors.whole("an output token", t, 0, self.tokens_out)
        columns = self.structure.row(t, self.tokens_in)
        places = (t,) * len(columns), tuple(columns)
        if isinstance(self.structure, BlockDiagonal) and self.block is not None:
            return Panel(*places, self._diagonal(slice(t, t + 1)))
        if isinstance(self.form, ClosedAttention):
            with torch.no_grad():
                return Panel(
                    *places,
                    self.form.write(range(t, t + 1), self.x.new_empty(len(columns), self.d_out, self.d_in), [0]),
                )
        rows = self._row_by_autodiff(t)[:, columns.start : columns.stop]
        return Panel(*places, rows.transpose(0, 1).contiguous())

    def _diagonal_panels(self) -> Iterator[Panel]:
        if self.block is None:  # an unknown function cannot be restricted to some of its tokens
            group = self.tokens_in
        else:
            group = max(1, PANEL_ELEMENTS // (self.d_out * self.d_in))
        for start in range(0, self.tokens_in, group):
            tokens = slice(start, min(start + group, self.tokens_in))
            yield Panel(*(tuple(range(tokens.start, tokens.stop)),) * 2, self._diagonal(tokens))

    def _attention_panels(self, form: ClosedAttention) -> Iterator[Panel]:
        start = 0
        while start < self.tokens_out:
            stop, first, count = start, [], 0
            while stop < self.tokens_out and (stop == start or count * self.d_out * self.d_in < PANEL_ELEMENTS):
                first.append(count)
                count += len(self.structure.row(stop, self.tokens_in))
                stop += 1
            places = [(t, s) for t in range(start, stop) for s in self.structure.row(t, self.tokens_in)]
            with torch.no_grad():
                blocks = form.write(range(start, stop), self.x.new_empty(count, self.d_out, self.d_in), first)
            yield Panel(tuple(t for t, _ in places), tuple(s for _, s in places), blocks)
            start = stop

    def energy(self) -> float:
        """‖J‖_F²: in closed form without J where there is one, else from J written out."""
        if self.form is not None:
            with torch.no_grad():
                return self.form.energy()
        return sum(float(panel.blocks.double().square().sum()) for panel in self.panels())

    def matmat_rounding(self, X: torch.Tensor) -> float:
        """‖change‖_F that a rounding in every operation makes to J·X, for X (N_in, k): as automatic differentiation computes
        it, forward pass included. Closed forms cancel less."""
        tangents = _by_token(X, self.tokens_in)
        return rounding(lambda: self._anew().push(tangents), self.dtype)

    def rmatmat_rounding(self, Y: torch.Tensor) -> float:
        """The same of Jᵀ·Y, for Y (N_out, k)."""
        cotangents = _by_token(Y, self.tokens_out)
        return rounding(lambda: self._anew().pull(cotangents), self.dtype)

    def _anew(self) -> Linearisation:
        """No forward pass is kept; ReLU units are held, since one within rounding of zero may flip."""
        fn = self._whole.fn if self.block is None else self.block.in_precision(self.dtype).function()
        return Linearisation(fn, self.x, self._whole.columns)

    def factors(self, t: int) -> tuple[np.ndarray, np.ndarray] | None:
        """C (n, d_out) and B (n, d_in) with block (t, t) = CᵀB, where fewer units than the width are active.

        None for all else. Safe to call from several threads at once.
        """
        t = doors.whole("a token", t, 0, self.tokens_out)
        form = self.form
        if not isinstance(form, ClosedMLP) or form.residual or len(form.active[t]) >= min(form.d_out, form.d_in):
            return None
        with torch.no_grad():
            C, B = form.factors(t, threads=1)
        return C.cpu().numpy(), B.cpu().numpy()

    def _diagonal(self, tokens: slice) -> torch.Tensor:
        """Blocks (t, t) of a group of tokens: cotangent i is the unit i at every token at once."""
        if isinstance(self.form, ClosedMLP):
            with torch.no_grad():
                return self.form.blocks(range(tokens.start, tokens.stop))
        x = self.x[tokens]
        count = x.shape[0]
        part = self._whole
        if self.block is not None:
            part = Linearisation(self.block.function(tokens), x, self._columns(count))
        out = x.new_empty(count, self.d_out, self.d_in)
        for start in range(0, self.d_out, part.columns):
            rows = slice(start, min(start + part.columns, self.d_out))
            units = x.new_zeros(rows.stop - rows.start, 1, self.d_out)
            units[range(rows.stop - rows.start), 0, range(rows.start, rows.stop)] = 1
            pulled = part.pull(units.repeat(1, count, 1))  # contiguous, so that products fold into one GEMM
            out[:, rows] = pulled.transpose(0, 1)
        return out

    def _row_by_autodiff(self, t: int) -> torch.Tensor:
        """Rows of output token t, (d_out, tokens_in, d_in)."""
        out = self.x.new_empty(self.d_out, self.tokens_in, self.d_in)
        for start in range(0, self.d_out, self._whole.columns):
            rows = range(start, min(start + self._whole.columns, self.d_out))
            units = self.x.new_zeros(len(rows), self.tokens_out, self.d_out)
            units[range(len(rows)), t, rows] = 1
            out[rows.start : rows.stop] = self._whole.pull(units)
        return out

    def dense(self) -> torch.Tensor:
        """J as a (N_out, N_in) tensor, blocks outside of the structure exactly zero."""
        J = self.x.new_zeros(self.tokens_out, self.d_out, self.tokens_in, self.d_in)
        if isinstance(self.form, ClosedAttention):
            with torch.no_grad():
                self.form.write(range(self.tokens_out), J.permute(0, 2, 1, 3))
            return J.reshape(self.shape)
        for panel in self.panels():
            for t, s, values in zip(panel.rows, panel.columns, panel.blocks, strict=True):
                J[t, :, s] = values
        return J.reshape(self.shape)

    def to_scipy(self) -> Any:
        """A `scipy.sparse.linalg.LinearOperator` with the same products."""
        from scipy.sparse.linalg import LinearOperator

        dtype = np.dtype(str(self.dtype).removeprefix("torch."))

        def on(product: Any) -> Any:
            def apply(X: np.ndarray) -> np.ndarray:
                if X.dtype.kind not in "fiu":
                    raise InputError(f"J is real, and so must be what it multiplies; got an array of {X.dtype}")
                columns = X.astype(dtype, copy=False).reshape(X.shape[0], -1)
                return product(columns).reshape(-1, *X.shape[1:])  # type: ignore[no-any-return]

            return apply

        return LinearOperator(
            self.shape,
            matvec=on(self.matmat),
            rmatvec=on(self.rmatmat),
            matmat=on(self.matmat),
            rmatmat=on(self.rmatmat),
            dtype=dtype,
        )

    def __repr__(self) -> str:
        return f"Jacobian({self.name}, shape={self.shape}, {self.structure.name}, {self.dtype})"


class Transposed:
    """Jᵀ: a view that swaps the products."""

    def __init__(self, J: Jacobian) -> None:
        self.T = J
        self.shape = J.shape[::-1]
        self.dtype, self.device = J.dtype, J.device
        self.form, self.energy = J.form, J.energy
        self.matmat_rounding, self.rmatmat_rounding = J.rmatmat_rounding, J.matmat_rounding

    def __matmul__(self, Y: Array) -> Array:
        return self.T._backward(Y, "J.T @ y" if getattr(Y, "ndim", 2) == 1 else "J.T @ Y")

    def matvec(self, y: Array) -> Array:
        return self.T._backward(y, "J.T.matvec", (1,))

    def rmatvec(self, x: Array) -> Array:
        return self.T._forward(x, "J.T.rmatvec", (1,))

    def matmat(self, Y: Array) -> Array:
        return self.T._backward(Y, "J.T.matmat", (2,))

    def rmatmat(self, X: Array) -> Array:
        return self.T._forward(X, "J.T.rmatmat", (2,))

    def dense(self) -> torch.Tensor:
        return self.T.dense().T


def jacobian(
    fn: Block | Function,
    x: torch.Tensor | None = None,
    structure: Structure | None = None,
    memory: int | str | None = None,
) -> Jacobian:
    """The Jacobian of a block at its own x, or of any function of a (tokens, d) tensor at x.

    structure   what is known of a function's Jacobian over tokens; probed before it is used;
                a block brings its own
    memory      what the intermediates of a product may take, in bytes or such as "4GiB"

    Raises InputError for a missing or malformed x and in a child forked after threads had run, VerificationError if the
    structure does not hold.
    """
    check_threads(torch.get_num_threads())
    limit = bytes_of(memory)
    if isinstance(fn, Block):
        if x is not None or structure is not None:
            raise InputError("a block brings its own x and structure; give jacobian(block) alone")
        held = replace(fn, x=fn.x.clone())  # as functions' points are: the caller may change its own afterwards
        return Jacobian(held.function(), held.x, held.structure, block=held, memory=limit)
    if structure is not None and not isinstance(structure, Structure):
        raise InputError(
            f"structure must be BlockDiagonal(), BlockLowerTriangular() or Dense(), got {doors.shown(structure)}"
        )
    if x is None:
        raise InputError("jacobian(fn, x) of a function needs the point x, a (tokens, d) tensor")
    return Jacobian(fn, x, structure, memory=limit)


def _is_plain(x: torch.Tensor) -> bool:
    """Whether a tensor is dense and has numbers."""
    return x.layout == torch.strided and not x.is_meta and not x.is_nested


def _described(x: Any) -> str:
    """What was given instead of a point, and how to make one of it."""
    if not isinstance(x, torch.Tensor):
        how = "; torch.as_tensor(x) makes one" if isinstance(x, np.ndarray) else ""
        return (
            f"{type(x).__name__}: {f'shape {x.shape}, {x.dtype}' if isinstance(x, np.ndarray) else doors.shown(x)}{how}"
        )
    if not _is_plain(x):
        return f"{type(x).__name__} that is sparse, nested or meta; x.to_dense() makes a plain one of a sparse one"
    if x.ndim == 2 and 0 not in x.shape:
        how = "; float32 and float64 are taken: give x.double(), and a function whose weights are in float64 too"
    else:
        how = "; one row a token, at least one of each"
    return f"{type(x).__name__}: shape {tuple(x.shape)}, {x.dtype}{how}"


def _by_token(X: torch.Tensor, tokens: int) -> torch.Tensor:
    """(tokens·d, k) -> (k, tokens, d), stored as (tokens, k, d); a copy, which a product may return as it is."""
    columns = X.reshape(tokens, X.shape[0] // tokens, X.shape[1]).transpose(1, 2)
    return columns.clone(memory_format=torch.contiguous_format).transpose(0, 1)


def _tensor(X: Any, words: str) -> torch.Tensor:
    """An operand as a torch tensor. Raises InputError for anything but a plain real array of NumPy or torch."""
    found = X
    if isinstance(X, np.ndarray) and X.dtype.isnative and X.dtype.kind in "fiu" and X.dtype.itemsize <= 8:
        if isinstance(X, np.ma.MaskedArray):
            raise InputError(f"{words} expects a plain array, got a masked one; X.filled(0) makes one")
        found = torch.from_numpy(np.array(X) if not X.flags.writeable else np.ascontiguousarray(X)).reshape(X.shape)
    if not isinstance(found, torch.Tensor):
        of = f" of {X.dtype}" if isinstance(X, np.ndarray) else ""
        raise InputError(f"{words} expects a real NumPy array or torch tensor, got {type(X).__name__}{of}")
    if not _is_plain(found):
        raise InputError(f"{words} expects a plain dense tensor, got a sparse, nested or meta one")
    return found


def _like(result: torch.Tensor, operand: Array) -> Array:
    result = result[:, 0] if operand.ndim == 1 else result
    return result.cpu().numpy() if isinstance(operand, np.ndarray) else result.to(operand.device)
