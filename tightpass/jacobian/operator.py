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

from tightpass.errors import InputError
from tightpass.jacobian.autodiff import Function, Linearisation, chunk_size
from tightpass.jacobian.diagnose import WHO_KNOWS, check_function, diagnosis
from tightpass.jacobian.forms.autodiff import Autodiff
from tightpass.jacobian.forms.base import Form, in_parts
from tightpass.jacobian.forms.closed import closed_form
from tightpass.jacobian.precision import check_precision_settings
from tightpass.jacobian.probe import check_structure
from tightpass.kernels.forks import check_threads
from tightpass.models.blocks import Block
from tightpass.structure import BlockDiagonal, Dense, Panel, Structure

Array = TypeVar("Array", np.ndarray, torch.Tensor)
# Output tokens whose structure is probed where the form has it by construction: of long inputs, every product is dear. Such a
# form is compared with automatic differentiation for all tokens besides.
PROBED = 64


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
    def matmat(self, X: Array) -> Array: ...
    @abstractmethod
    def rmatmat(self, Y: Array) -> Array: ...
    @abstractmethod
    def dense(self) -> torch.Tensor: ...
    @abstractmethod
    def energy(self) -> float: ...
    @abstractmethod
    def known_energy(self) -> float | None: ...

    def __matmul__(self, X: Array) -> Array:
        return self.matvec(X) if getattr(X, "ndim", 2) == 1 else self.matmat(X)

    def matvec(self, x: Array) -> Array:
        """J x for x of shape (N_in,)."""
        return self.matmat(_check_vector(x, self.shape[1], "matvec")[:, None])[:, 0]

    def rmatvec(self, y: Array) -> Array:
        """Jᵀ y for y of shape (N_out,)."""
        return self.rmatmat(_check_vector(y, self.shape[0], "rmatvec")[:, None])[:, 0]

    def to_scipy(self) -> Any:
        """A `scipy.sparse.linalg.LinearOperator` with the same products."""
        from scipy.sparse.linalg import LinearOperator

        dtype = np.dtype(str(self.dtype).removeprefix("torch."))

        def on(product: Any) -> Any:
            def apply(X: np.ndarray) -> np.ndarray:
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
    ) -> None:
        check_precision_settings()
        if (
            not isinstance(x, torch.Tensor)
            or x.ndim != 2
            or x.dtype not in (torch.float32, torch.float64)
            or 0 in x.shape
        ):
            got = f"shape {tuple(x.shape)}, {x.dtype}" if hasattr(x, "shape") else repr(x)
            raise InputError(f"x must be a floating (tokens, d) tensor of torch, got a {type(x).__name__}: {got}")
        if not bool(x.isfinite().all()):
            raise InputError("x must be finite, got NaN or infinite entries")
        if not callable(fn):
            raise InputError(f"jacobian expects a block or a function of a tensor, got {type(fn).__name__}")
        # a copy: the caller may change its own afterwards
        self.x, self.block, self.memory = x.detach().clone(memory_format=torch.contiguous_format), block, memory
        self.structure = Dense() if structure is None else structure
        self._width = block.width if block is not None else 8 * x.shape[1]
        closed = None if block is None else closed_form(block)
        self._whole = Linearisation(fn, self.x, self._columns(x.shape[0]))
        self.looked = () if block is not None else (check_function(self._whole),)
        self.form: Form = closed or self._by_autodiff()
        self.tokens_out, self.d_out = self._whole.y.shape
        self.tokens_in, self.d_in = x.shape
        if not isinstance(self.structure, Dense):
            if self.tokens_out != self.tokens_in:
                raise InputError(
                    f"{self.structure.name} needs as many output as input tokens, got {self.tokens_out} and {self.tokens_in}"
                )
            check_structure(self._whole, self.structure, PROBED if self.form.structured else None)

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
    def name(self) -> str:
        return "J" if self.block is None else self.block.name

    @property
    def route(self) -> str:
        """How products and blocks are computed, in words."""
        return self.form.route(self.device.type)

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

    def matmat(self, X: Array) -> Array:
        """J X for X of shape (N_in, k)."""
        columns = self._operand(X, self.shape[1], "matmat")
        out = self._push(_by_token(columns, self.tokens_in))
        return _like(out.reshape(len(out), self.shape[0]).T, X)

    def rmatmat(self, Y: Array) -> Array:
        """Jᵀ Y for Y of shape (N_out, k)."""
        columns = self._operand(Y, self.shape[0], "rmatmat")
        out = self._pull(_by_token(columns, self.tokens_out))
        return _like(out.reshape(len(out), self.shape[1]).T, Y)

    def _push(self, tangents: torch.Tensor) -> torch.Tensor:
        if not len(tangents):
            return tangents.new_zeros(0, self.tokens_out, self.d_out)
        return self._in_parts(self.form.push, tangents)

    def _pull(self, cotangents: torch.Tensor) -> torch.Tensor:
        if not len(cotangents):
            return cotangents.new_zeros(0, self.tokens_in, self.d_in)
        return self._in_parts(self.form.pull, cotangents)

    def _in_parts(self, product: Function, columns: torch.Tensor) -> torch.Tensor:
        """A product, as many columns at once as the form carries."""
        with torch.no_grad():
            return in_parts(product, columns, self.form.at_once(self.x.itemsize, self.memory))

    def _operand(self, X: Any, rows: int, verb: str) -> torch.Tensor:
        tensor: Any = X
        if isinstance(X, np.ndarray) and X.dtype.isnative and X.dtype.kind in "fiu":
            tensor = torch.from_numpy(np.ascontiguousarray(X))
        if not isinstance(tensor, torch.Tensor):
            of = f" of {X.dtype}" if isinstance(X, np.ndarray) else ""
            raise InputError(f"{verb} expects a real NumPy array or torch tensor, got {type(X).__name__}{of}")
        if tensor.ndim != 2 or tensor.shape[0] != rows:
            raise InputError(f"{verb} expects shape ({rows}, k), got {tuple(tensor.shape)}")
        if tensor.dtype != self.dtype:
            raise InputError(
                f"{verb} expects {self.dtype}, got {tensor.dtype}; convert it, or load the model in that dtype"
            )
        check_threads(torch.get_num_threads())
        return tensor.to(self.device)

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

    def __init__(self, J: Jacobian) -> None:
        self._J = J

    @property
    def T(self) -> Jacobian:
        return self._J

    @property
    def shape(self) -> tuple[int, int]:
        return self._J.shape[1], self._J.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self._J.dtype

    @property
    def device(self) -> torch.device:
        return self._J.device

    def matmat(self, X: Array) -> Array:
        return self._J.rmatmat(X)

    def rmatmat(self, Y: Array) -> Array:
        return self._J.matmat(Y)

    def dense(self) -> torch.Tensor:
        return self._J.dense().T

    def energy(self) -> float:
        return self._J.energy()

    def known_energy(self) -> float | None:
        return self._J.known_energy()

    def __repr__(self) -> str:
        return f"{self._J!r}.T"


def jacobian(
    fn: Block | Function, x: torch.Tensor | None = None, structure: Structure | None = None, memory: int | None = None
) -> Jacobian:
    """The Jacobian of a block at its own x, or of any function of a (tokens, d) tensor at x.

    structure   what is known of a function's Jacobian over tokens; probed before it is used;
                a block brings its own
    memory      bytes that the intermediates of a product may take

    Raises InputError for a missing or malformed x and in a child forked after threads had run, VerificationError if the
    structure does not hold.
    """
    check_threads(torch.get_num_threads())
    if isinstance(fn, Block):
        if x is not None or structure is not None:
            raise InputError("a block brings its own x and structure; give jacobian(block) alone")
        held = replace(fn, x=fn.x.clone())  # as functions' points are: the caller may change its own afterwards
        return Jacobian(held.function(), held.x, held.structure, block=held, memory=memory)
    if structure is not None and not isinstance(structure, Structure):
        raise InputError(f"structure must be BlockDiagonal(), BlockLowerTriangular() or Dense(), got {structure!r}")
    if x is None:
        raise InputError("jacobian(fn, x) of a function needs the point x, a (tokens, d) tensor")
    return Jacobian(fn, x, structure, memory=memory)


def _by_token(X: torch.Tensor, tokens: int) -> torch.Tensor:
    """(tokens·d, k) -> (k, tokens, d), stored as (tokens, k, d); a copy, which a product may return as it is."""
    columns = X.reshape(tokens, X.shape[0] // tokens, X.shape[1]).transpose(1, 2)
    return columns.clone(memory_format=torch.contiguous_format).transpose(0, 1)


def _check_vector(x: Array, size: int, verb: str) -> Array:
    if x.ndim != 1:
        raise InputError(
            f"{verb} expects one vector, got shape {tuple(x.shape)}; use {verb[:-3]}mat for several columns"
        )
    if x.shape[0] != size:
        raise InputError(f"{verb} expects shape ({size},), got {tuple(x.shape)}")
    return x


def _like(result: torch.Tensor, operand: Array) -> Array:
    return result.cpu().numpy() if isinstance(operand, np.ndarray) else result.to(operand.device)
