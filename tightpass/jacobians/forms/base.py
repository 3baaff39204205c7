"""What every way of computing a Jacobian can do: the contract `Form`, and `Piece` for those that can be composed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tightpass.arrays import dtype_name
from tightpass.kernels import native
from tightpass.structure import Panel, Structure

PANEL_ELEMENTS = 2_500_000
"""Of a group of blocks: the same tokens in every precision."""
LARGE = 2**22
"""Bytes from which NumPy asks for large pages."""
PRODUCT_BYTES = 26 * 2**20
"""Of each (columns, tokens, width) intermediate of a product. Under 32 MiB the allocator reuses its heap instead of mapping
fresh pages for every one (as in `autodiff.ARENA_BYTES`)."""


@dataclass(frozen=True)
class Cost:
    """What a form takes, from shapes alone.

    product   FLOPs of J·X or Jᵀ·Y, for each column
    blocks    FLOPs of writing all blocks
    kept      elements that it holds beside the model's own weights
    working   elements of a product's intermediates, for each column that is carried at once
    widest    elements of the widest of them, by which columns are carried
    panel     elements of the largest panel
    writing   elements beside a panel that is written
    norm      float64 numbers while ‖J‖_F² is found without J
    arena     bytes of the widest intermediate, by which columns are carried
    """

    product: float
    blocks: float
    kept: int
    working: int
    widest: int = 0
    panel: int = 0
    writing: int = 0
    norm: int = 0
    arena: int = PRODUCT_BYTES

    def product_bytes(self, columns: int, itemsize: int) -> int:
        """A product's intermediates, with so many columns or as many as are carried at once."""
        return min(columns, max(1, self.arena // max(1, self.widest * itemsize))) * self.working * itemsize


class Form(ABC):
    """The Jacobian of a map of (tokens_in, d_in) to (tokens_out, d_out) tensors at a point.

    structure    which blocks can be non-zero
    closed       whether it is another way than automatic differentiation
    structured   whether no other block is anything but zero by construction; else a probe has to see that
    width        elements of the widest intermediate of a product, per token and column
    heads_apart  how many heads it is the sum of, each of which has a form of its own; 0 for none

    Tangents are (k, tokens_in, d_in), cotangents (k, tokens_out, d_out); answers are arrays of their own.
    """

    structure: Structure
    tokens_out: int
    d_out: int
    tokens_in: int
    d_in: int
    structured = True
    closed = True
    heads_apart = 0

    @property
    @abstractmethod
    def width(self) -> int: ...

    @property
    @abstractmethod
    def cost(self) -> Cost: ...

    @abstractmethod
    def push(self, tangents: torch.Tensor) -> torch.Tensor:
        """J on tangents -> (k, tokens_out, d_out)."""

    @abstractmethod
    def pull(self, cotangents: torch.Tensor) -> torch.Tensor:
        """Jᵀ on cotangents -> (k, tokens_in, d_in)."""

    @abstractmethod
    def panels(self, rows: range) -> Iterator[Panel]:
        """The blocks of output tokens `rows` that the structure allows, in the order of (row, column), few at a time."""

    def energy(self) -> float | None:
        """‖J‖_F² without writing J; None where that is not known."""
        return None

    def energy_reach(self) -> float:
        """What `energy` is made of before anything cancels: its rounding is relative to this."""
        return self.energy() or 0.0

    def block_energies(self) -> torch.Tensor | None:
        """‖J_ts‖_F² of all blocks without writing J, (tokens, tokens) float64; None where they are not known."""
        return None

    def paths(self) -> Iterator[Form] | None:
        """Of an attention, first through its values, then through its weights: J, without an identity, is their sum."""
        return None

    def thin_factors(self, t: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """C (n, d_out) and B (n, d_in) with block (t, t) = CᵀB and n below both; None where there are none. Safe to call from
        several threads at once."""
        return None

    def write_dense(self, J: torch.Tensor) -> None:
        """The blocks into a zero J (tokens_out, d_out, tokens_in, d_in)."""
        for panel in self.panels(range(self.tokens_out)):
            for t, s, values in zip(panel.rows, panel.columns, panel.blocks, strict=True):
                J[t, :, s] = values

    def at_once(self, itemsize: int, memory: int | None) -> int:
        """How many columns a product carries at once, with entries of so many bytes and so much memory."""
        return carried(self.tokens_in * self.width * itemsize, memory)

    def route(self, device: str) -> str:
        """How products and blocks are computed, in words."""
        return f"closed form, kernels: {native.backend(device)}"


class Piece(Form):
    """A form that composes (`compose.py`): tokens to as many tokens, and where it is not `Dense`, products with the first n
    tokens alone: tangents and cotangents (k, n, d) of n ≤ tokens give (k, n, ·).

    Products are fastest where tangents.transpose(0, 1) is contiguous.
    """

    tokens: int
    entrywise = False
    """Whether `after` takes as little as to read the blocks and write them, and does so in their place."""

    @abstractmethod
    def row(self, t: int, left: torch.Tensor | None = None) -> torch.Tensor:
        """The blocks of output token t over the n input tokens that the structure allows, each multiplied from the left by
        `left` (m, d_out) if it is given: (n, m, d_in), an array of its own."""

    def after(self, t: int, blocks: torch.Tensor) -> torch.Tensor:
        """The block (t, t) of an entrywise piece times blocks (n, d_in, ·) of what comes before it, in their place."""
        return blocks.copy_(self.row(t)[0] @ blocks)

    def panels(self, rows: range) -> Iterator[Panel]:
        """One output token after the other."""
        for t in rows:
            columns = tuple(self.structure.row(t, self.tokens))
            yield Panel((t,) * len(columns), columns, self.row(t))


def room(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """Memory for a tensor of the precision and device of `like`, of any content.

    On the host it is NumPy's from `LARGE` on, which asks the system for large pages: fresh ones come three to four times as
    fast as torch's (`benchmarks/pages.py`).
    """
    if like.device.type != "cpu" or math.prod(shape) * like.itemsize < LARGE:
        return like.new_empty(shape)
    return torch.from_numpy(np.empty(shape, dtype_name(like.dtype)))


def carried(bytes_per_column: int, memory: int | None = None) -> int:
    """How many columns' intermediates of so many bytes a product may have at once."""
    budget = PRODUCT_BYTES if memory is None else min(PRODUCT_BYTES, memory // 16)
    return max(1, budget // max(1, bytes_per_column))


def panel_of(blocks: int, elements: int) -> int:
    """Elements of a panel of a form that fills it with so many blocks at most, each of so many elements."""
    return min(blocks * elements, max(elements, PANEL_ELEMENTS))


def in_parts(product: Callable[[torch.Tensor], torch.Tensor], columns: torch.Tensor, step: int) -> torch.Tensor:
    """A product with (k, n, d) columns, so many of them at once; the answer is stored as (n, k, ·)."""
    if len(columns) <= step:
        return product(columns)
    out = columns.new_empty(0)
    for start in range(0, len(columns), step):
        part = product(columns[start : start + step])
        if start == 0:
            out = part.new_empty(part.shape[1], len(columns), part.shape[2]).transpose(0, 1)
        out[start : start + step] = part
    return out


def groups(tokens: range, elements: int) -> Iterator[range]:
    """Tokens in groups whose blocks, of so many elements each, fill a panel."""
    group = max(1, PANEL_ELEMENTS // elements)
    for start in range(tokens.start, tokens.stop, group):
        yield range(start, min(start + group, tokens.stop))
