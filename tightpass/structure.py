"""What is known of a Jacobian over tokens, which of its (token, token) blocks can be non-zero; and those blocks, written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from tightpass import doors
from tightpass.errors import InputError


@dataclass(frozen=True)
class Structure:
    """Base of the three structures; `row(t, tokens)` lists the input tokens of output token t."""

    def row(self, t: int, tokens: int) -> range:
        raise TypeError("use BlockDiagonal, BlockLowerTriangular or Dense")

    def count(self, rows: int, columns: int) -> int:
        """Number of blocks that can be non-zero, for `rows` output and `columns` input tokens."""
        rows, columns = doors.whole("rows", rows), doors.whole("columns", columns)
        return sum(len(self.row(t, columns)) for t in range(rows))

    @property
    def name(self) -> str:
        return type(self).__name__


@dataclass(frozen=True)
class BlockDiagonal(Structure):
    """Output token t depends on input token t alone."""

    def row(self, t: int, tokens: int) -> range:
        t = doors.whole("t", t)
        return range(t, t + 1)

    def count(self, rows: int, columns: int) -> int:
        return doors.whole("rows", rows)


@dataclass(frozen=True)
class BlockLowerTriangular(Structure):
    """Output token t depends on the input tokens up to t."""

    def row(self, t: int, tokens: int) -> range:
        return range(doors.whole("t", t) + 1)

    def count(self, rows: int, columns: int) -> int:
        rows = doors.whole("rows", rows)
        return rows * (rows + 1) // 2


@dataclass(frozen=True)
class Dense(Structure):
    """Every output token may depend on every input token."""

    def row(self, t: int, tokens: int) -> range:
        return range(doors.whole("tokens", tokens))

    def count(self, rows: int, columns: int) -> int:
        return doors.whole("rows", rows) * doors.whole("columns", columns)


@dataclass(frozen=True)
class Panel:
    """Some non-zero blocks: `blocks[i]`, (d_out, d_in), is J's block (rows[i], columns[i]); of
    torch or of NumPy."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    blocks: Any


class Source(Protocol):
    """What a decomposition needs of a matrix in blocks."""

    @property
    def structure(self) -> Structure: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def d_out(self) -> int: ...
    @property
    def d_in(self) -> int: ...
    def panels(self) -> Iterator[Panel]: ...


STRUCTURES = {kind.__name__: kind() for kind in (BlockDiagonal, BlockLowerTriangular, Dense)}


def check_kind(structure: Any) -> None:
    """Raises InputError for what is no structure; None is no claim."""
    if structure is not None and not isinstance(structure, Structure):
        raise InputError(
            f"structure must be BlockDiagonal(), BlockLowerTriangular() or Dense(), got {doors.shown(structure)}"
        )
