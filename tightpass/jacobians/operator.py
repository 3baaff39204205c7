"""The Jacobian of a map of (tokens, d) tensors as a linear operator.

Rows and columns are flattened token by token: column s·d + j is feature j of input token s.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch

from tightpass import doors
from tightpass.errors import InputError
from tightpass.jacobians.autodiff import Function, Linearisation, chunk_size
from tightpass.jacobians.diagnose import WHO_KNOWS, check_function, diagnosis
from tightpass.jacobians.forms.autodiff import Autodiff, product_bytes
from tightpass.jacobians.forms.autodiff import cost_of as cost_of_autodiff
from tightpass.jacobians.forms.base import Cost, Form, in_parts
from tightpass.jacobians.forms.closed import cost_of as cost_of_closed
from tightpass.jacobians.forms.closed import tried
from tightpass.jacobians.otherwise import hides, otherwise
from tightpass.jacobians.perturbing import rounding
from tightpass.jacobians.precision import check_precision_settings
from tightpass.jacobians.probe import check_structure
from tightpass.kernels.forks import check_threads
from tightpass.models.blocks import Block, depth_of, width_of, work_of_checks
from tightpass.models.sdpa import followable
from tightpass.models.shape import Shape
from tightpass.models.submodule import ModuleBlock
from tightpass.structure import BlockDiagonal, Dense, Panel, Structure, check_kind
from tightpass.units import bytes_of
from tightpass.work import Work, kept, passing

Array = TypeVar("Array", np.ndarray, torch.Tensor)
# Output tokens whose structure is probed where the form has it by construction: of long inputs, every product is dear. Such a
# form is compared with automatic differentiation for all tokens besides.
PROBED_TOKENS = 64


def cost_of(kind: str, tokens: int, shape: Shape, itemsize: int) -> Cost:
    """What the form of a block of some kind takes, in closed form where there is one."""
    if kind in shape.closed:
        return cost_of_closed(kind, tokens, shape)
    return cost_of_autodiff(kind, tokens, shape, itemsize)


def work_of(cost: Cost, kind: str, tokens: int, shape: Shape, itemsize: int) -> Work:
    """Of a block's Jacobian as it is made: its form, compared with automatic differentiation, whose graph stays; and the check
    of its structure, of which a closed form leaves less to be looked at."""
    intermediates = tokens * width_of(shape, kind, tokens) * itemsize
    graph = depth_of(shape, kind) * intermediates
    checked = work_of_checks(shape, kind, tokens, itemsize).then(passing(cost.product_bytes(1, itemsize)))
    probes = 1 if kind == "mlp" else min(PROBED_TOKENS, tokens) if kind in shape.closed else tokens
    return kept(cost.kept * itemsize).then(checked, kept(graph), passing(product_bytes(probes, intermediates)))


class Operator(ABC):
    """A linear map with products: what a Jacobian and its transpose have in common.

    Raises InputError for operands that are not NumPy arrays or torch tensors of its dtype and of as many rows as it has columns.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]: ...
    @property
    @abstractmethod
    def dtype(self) -> torch.dtype: ...
    @property
    @abstractmethod
    def device(self) -> torch.device: ...
    @property
    @abstractmethod
    def T(self) -> Operator: ...
    @abstractmethod
    def _forward(self, X: Array, words: str, axes: tuple[int, ...] = (1, 2)) -> Array:
        """A X. `words`: the operation as the caller wrote it; `axes`: how many X may have."""

    @abstractmethod
    def _backward(self, Y: Array, words: str, axes: tuple[int, ...] = (1, 2)) -> Array:
        """Aᵀ Y, likewise."""

    @abstractmethod
    def matmat_rounding(self, X: torch.Tensor) -> float: ...
    @abstractmethod
    def rmatmat_rounding(self, Y: torch.Tensor) -> float: ...
    @abstractmethod
    def dense(self) -> torch.Tensor: ...
    @abstractmethod
    def energy(self) -> float: ...
    @abstractmethod
    def known_energy(self) -> float | None: ...

    called, operands, prefix = "J", "xX", ""
    """As its products are spoken of: J @ x, J @ X, and matvec, or J.T.matvec."""

    def __matmul__(self, X: Array) -> Array:
        return self._forward(X, f"{self.called} @ {self.operands[getattr(X, 'ndim', 2) != 1]}")

    def matvec(self, x: Array) -> Array:
        """A x for x of shape (N_in,)."""
        return self._forward(x, f"{self.prefix}matvec", (1,))

    def rmatvec(self, y: Array) -> Array:
        """Aᵀ y for y of shape (N_out,)."""
        return self._backward(y, f"{self.prefix}rmatvec", (1,))

    def matmat(self, X: Array) -> Array:
        """A X for X of shape (N_in, k)."""
        return self._forward(X, f"{self.prefix}matmat", (2,))

    def rmatmat(self, Y: Array) -> Array:
        """Aᵀ Y for Y of shape (N_out, k)."""
        return self._backward(Y, f"{self.prefix}rmatmat", (2,))

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


class Jacobian(Operator):
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
        name: str = "J",
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
        self.function = fn
        # a copy: the caller may change its own afterwards
        self.x, self.block, self.memory = x.detach().clone(memory_format=torch.contiguous_format), block, memory
        self.structure = Dense() if structure is None else structure
        self.name = name if block is None else block.name
        self._width = block.width if block is not None else 8 * x.shape[1]
        closed, self.rejected = (None, False) if block is None else tried(block)
        self._whole = Linearisation(fn if block is not None else followable(fn), self.x, self._columns(x.shape[0]))
        self.looked = () if block is not None else (check_function(self._whole),)
        self.form: Form = closed or self._by_autodiff()
        self.tokens_out, self.d_out = self._whole.y.shape
        self.tokens_in, self.d_in = x.shape
        if not isinstance(self.structure, Dense):
            if self.tokens_out != self.tokens_in:
                raise InputError(
                    f"{self.structure.name} needs as many output as input tokens, got {self.tokens_out} and {self.tokens_in}"
                )
            check_structure(self._whole, self.structure, PROBED_TOKENS if self.form.structured else None)

    def _by_autodiff(self) -> Form:
        block = self.block
        restricted = None
        if block is not None and isinstance(self.structure, BlockDiagonal):

            def restricted(tokens: slice) -> Linearisation:
                return Linearisation(block.function(tokens), self.x[tokens], self._columns(tokens.stop - tokens.start))

        return Autodiff(self._whole, self.structure, self._width, restricted)

    def _columns(self, tokens: int) -> int:
        return chunk_size(tokens * self._width * self.x.itemsize, self.memory)

    @property
    def route(self) -> str:
        """How products and blocks are computed, in words."""
        return self.form.route(self.device.type)

    @property
    def differentiated(self) -> Linearisation:
        """Automatic differentiation of the same function, whatever products use."""
        return self._whole

    def held(self) -> Linearisation:
        """Likewise; no forward pass is kept, and ReLU units and decisions are held, since one within rounding may flip."""
        fn = self._whole.fn if self.block is None else self.block.in_precision(self.dtype).function()
        return Linearisation(fn, self.x, self._whole.columns)

    def otherwise(self) -> Linearisation | None:
        """A function's products in the other precision, where it lets that be; None of a block."""
        return None if self.block is not None else otherwise(self.function, self._whole)

    @property
    def hides(self) -> bool:
        """Whether a function computes some of it where its rounding is not seen."""
        return self.block is None and hides(self._whole)

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

    def _forward(self, X: Array, words: str, axes: tuple[int, ...] = (1, 2)) -> Array:
        columns = self._operand(X, self.shape[1], words, axes)
        out = self.push(_by_token(columns, self.tokens_in))
        return _like(out.reshape(len(out), self.shape[0]).T, X)

    def _backward(self, Y: Array, words: str, axes: tuple[int, ...] = (1, 2)) -> Array:
        columns = self._operand(Y, self.shape[0], words, axes)
        out = self.pull(_by_token(columns, self.tokens_out))
        return _like(out.reshape(len(out), self.shape[1]).T, Y)

    def push(self, tangents: torch.Tensor) -> torch.Tensor:
        """(k, tokens_in, d_in) tangents -> (k, tokens_out, d_out)."""
        if not len(tangents):
            return tangents.new_zeros(0, self.tokens_out, self.d_out)
        return self._in_parts(self.form.push, tangents)

    def pull(self, cotangents: torch.Tensor) -> torch.Tensor:
        """(k, tokens_out, d_out) cotangents -> (k, tokens_in, d_in)."""
        if not len(cotangents):
            return cotangents.new_zeros(0, self.tokens_in, self.d_in)
        return self._in_parts(self.form.pull, cotangents)

    def _in_parts(self, product: Function, columns: torch.Tensor) -> torch.Tensor:
        """A product, as many columns at once as the form carries."""
        with torch.no_grad():
            return in_parts(product, columns, self.form.at_once(self.x.itemsize, self.memory))

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

    @torch.no_grad()
    def panels(self) -> Iterator[Panel]:
        """The non-zero blocks, a few tokens at a time, in the order of (row, column)."""
        yield from self.form.panels(range(self.tokens_out))

    def energy(self) -> float:
        """‖J‖_F²: in closed form without J where there is one, else from J written out."""
        known = self.known_energy()
        if known is not None:
            return known
        return sum(float(panel.blocks.double().square().sum()) for panel in self.panels())

    def matmat_rounding(self, X: torch.Tensor) -> float:
        """‖change‖_F that a rounding in every operation makes to J·X, for X (N_in, k): as automatic differentiation computes
        it, forward pass included. Closed forms cancel less."""
        tangents = _by_token(X, self.tokens_in)
        return rounding(lambda: self.held().push(tangents), self.dtype)

    def rmatmat_rounding(self, Y: torch.Tensor) -> float:
        """The same of Jᵀ·Y, for Y (N_out, k)."""
        cotangents = _by_token(Y, self.tokens_out)
        return rounding(lambda: self.held().pull(cotangents), self.dtype)

    @torch.no_grad()
    def known_energy(self) -> float | None:
        """‖J‖_F² without writing J; None where that is not known."""
        return self.form.energy()

    @torch.no_grad()
    def block_energies(self) -> np.ndarray | None:
        """‖J_ts‖_F² of all blocks, (tokens, tokens), without writing J; None where they are not known."""
        found = self.form.block_energies()
        return None if found is None else found.cpu().numpy()

    def factors(self, t: int) -> tuple[np.ndarray, np.ndarray] | None:
        """C (n, d_out) and B (n, d_in) with block (t, t) = CᵀB, where fewer units than the width are active.

        None for all else. Safe to call from several threads at once.
        """
        t = doors.whole("a token", t, 0, self.tokens_out)
        with torch.no_grad():
            found = self.form.thin_factors(t)
        return None if found is None else (found[0].cpu().numpy(), found[1].cpu().numpy())

    @torch.no_grad()
    def dense(self) -> torch.Tensor:
        """J as a (N_out, N_in) tensor, blocks outside of the structure exactly zero."""
        J = self.x.new_zeros(self.tokens_out, self.d_out, self.tokens_in, self.d_in)
        self.form.write_dense(J)
        return J.reshape(self.shape)

    def __repr__(self) -> str:
        return f"Jacobian({self.name}, shape={self.shape}, {self.structure.name}, {self.dtype})"


class Transposed(Operator):
    """Jᵀ: a view that swaps the products."""

    called, operands, prefix = "J.T", "yY", "J.T."

    def __init__(self, J: Jacobian) -> None:
        self._J = J

    @property
    def T(self) -> Jacobian:
        return self._J

    @property
    def name(self) -> str:
        return f"{self._J.name}.T"

    @property
    def tokens_in(self) -> int:
        """What comes in is what J gives."""
        return self._J.tokens_out

    @property
    def shape(self) -> tuple[int, int]:
        return self._J.shape[1], self._J.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self._J.dtype

    @property
    def device(self) -> torch.device:
        return self._J.device

    def _forward(self, X: Array, words: str, axes: tuple[int, ...] = (1, 2)) -> Array:
        return self._J._backward(X, words, axes)

    def _backward(self, Y: Array, words: str, axes: tuple[int, ...] = (1, 2)) -> Array:
        return self._J._forward(Y, words, axes)

    def matmat_rounding(self, X: torch.Tensor) -> float:
        return self._J.rmatmat_rounding(X)

    def rmatmat_rounding(self, Y: torch.Tensor) -> float:
        return self._J.matmat_rounding(Y)

    def dense(self) -> torch.Tensor:
        return self._J.dense().T

    def energy(self) -> float:
        return self._J.energy()

    def known_energy(self) -> float | None:
        return self._J.known_energy()

    def __repr__(self) -> str:
        return f"{self._J!r}.T"


def jacobian(
    fn: Block | ModuleBlock | Function,
    x: torch.Tensor | None = None,
    structure: Structure | None = None,
    memory: int | str | None = None,
) -> Jacobian:
    """The Jacobian of a block at its own x, or of any function of a (tokens, d) tensor at x.

    fn          a function of float64 is to compute in float64 throughout (`genuine` sees to it), to be differentiable, and to
                give the same at the same x; what it does not do is said. Attention takes a path with derivatives by itself
    structure   what is known of a function's Jacobian over tokens: BlockDiagonal() where each output token depends on its own
                input token alone, BlockLowerTriangular() where on those up to it, Dense() (the default) of nothing;
                probed before it is used, so that a wrong one is refused and never used; a block brings its own
    memory      what the intermediates of a product may take, in bytes or such as "4GiB"

    Raises InputError for a missing or malformed x, for a function that has no Jacobian, in words, and in a child forked after threads had run, VerificationError if the
    structure does not hold.
    """
    check_threads(torch.get_num_threads())
    limit = bytes_of(memory)
    if isinstance(fn, Block):
        if x is not None or structure is not None:
            raise InputError("a block brings its own x and structure; give jacobian(block) alone")
        held = replace(fn, x=fn.x.clone())  # as functions' points are: the caller may change its own afterwards
        return Jacobian(held.function(), held.x, held.structure, block=held, memory=limit)
    if isinstance(fn, ModuleBlock):
        if x is not None or structure is not None:
            raise InputError("a block brings its own x and structure; give jacobian(block) alone")
        return Jacobian(fn.function, fn.x, fn.structure, memory=limit, name=fn.name)
    check_kind(structure)
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
