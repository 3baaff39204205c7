"""Shards: one job's Jacobian in its non-zero blocks, with its x and its evidence.

A shard is written under a unique `.part` name, closed, synced, reopened and checked, renamed, and
the directory synced; after that it never changes. It is plain HDF5 with dimension
scales: `jacobian` (block, output, input), `row_token` and `column_token` (block), `x` (token, feature).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tightpass.arrays import on_host, squared_norm
from tightpass.errors import InputError, VerificationError
from tightpass.rank.records import Evidence
from tightpass.store.hdf5 import create
from tightpass.store.publish import part_of, publish
from tightpass.store.stored import check_evidence, door, parsed
from tightpass.structure import STRUCTURES, Panel, Structure
from tightpass.work import Work, passing

SCHEMA = 1
CHUNK_BYTES = 2**20
READ_BYTES = 2**26
"""Of blocks that are read at once."""


@dataclass(frozen=True)
class Layout:
    """What a shard's arrays look like, known before the first block."""

    structure: Structure
    tokens_out: int
    tokens_in: int
    d_out: int
    d_in: int
    dtype: str

    @property
    def shape(self) -> tuple[int, int]:
        return self.tokens_out * self.d_out, self.tokens_in * self.d_in

    @property
    def count(self) -> int:
        """Number of blocks."""
        return self.structure.count(self.tokens_out, self.tokens_in)

    @property
    def block_bytes(self) -> int:
        return self.d_out * self.d_in * np.dtype(self.dtype).itemsize

    @property
    def blocks_at_once(self) -> int:
        """As many as are read together."""
        return max(1, READ_BYTES // self.block_bytes)

    @property
    def bytes(self) -> int:
        """Bytes of all blocks."""
        return self.count * self.block_bytes

    def work_of_reading(self) -> Work:
        """Of all panels, one after the other: one is there while the next is read."""
        group = self.blocks_at_once
        return passing(min(self.count, 2 * group) * self.block_bytes)


class ShardWriter:
    """Appends panels to a `.part` file; `publish` makes it the shard, `discard` removes it."""

    def __init__(self, path: Path, layout: Layout, identity: str, x: np.ndarray) -> None:
        self.path, self.layout, self.at = path, layout, 0
        self.part = part_of(path)
        self.file: h5py.File | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._prepare(identity, x)
        except BaseException:  # an interrupt too: nothing half-written stays
            self.discard()
            raise

    def _prepare(self, identity: str, x: np.ndarray) -> None:
        """Creates the part with its attributes and empty datasets."""
        layout = self.layout
        self.file = create(self.part)
        self.file.attrs.update(
            schema=SCHEMA,
            identity=identity,
            structure=layout.structure.name,
            tokens_out=layout.tokens_out,
            tokens_in=layout.tokens_in,
        )
        rows = max(1, min(layout.d_out, CHUNK_BYTES // (layout.d_in * np.dtype(layout.dtype).itemsize)))
        self.blocks = self.file.create_dataset(
            "jacobian",
            (layout.count, layout.d_out, layout.d_in),
            layout.dtype,
            chunks=(1, rows, layout.d_in),
            fletcher32=True,
        )
        self.rows = self.file.create_dataset("row_token", (layout.count,), "int32", fletcher32=True)
        self.columns = self.file.create_dataset("column_token", (layout.count,), "int32", fletcher32=True)
        self.file.create_dataset("x", data=x, fletcher32=True)
        _label_dimensions(
            self.file,
            {
                "jacobian": ("block", "output", "input"),
                "row_token": ("block",),
                "column_token": ("block",),
                "x": ("token", "feature"),
            },
        )

    def write(self, panel: Panel) -> None:
        """Appends some blocks."""
        end = self.at + len(panel.rows)
        self.blocks[self.at : end] = on_host(panel.blocks)
        self.rows[self.at : end] = panel.rows
        self.columns[self.at : end] = panel.columns
        self.at = end

    def panels(self) -> Iterator[Panel]:
        """What was written so far, read back."""
        assert self.file is not None
        return _panels_of(self.file, self.part, self.layout, self.at)

    def close(self, evidence: dict[str, Any]) -> Shard:
        """Ends the writing; the part can be read, but is not published yet."""
        if self.at != self.layout.count:
            raise VerificationError(f"{self.path.name}: {self.at} of {self.layout.count} blocks were written")
        assert self.file is not None
        self.file.attrs["evidence"] = json.dumps(evidence)
        self.file.close()
        return Shard(self.part)

    def publish(self) -> Shard:
        """Syncs, checks every chunk, renames into place, syncs the directory."""
        publish(self.part, self.path, lambda part: Shard(part).check())
        return Shard(self.path)

    def discard(self) -> None:
        """Removes the part, if it is still there."""
        if self.file:
            self.file.close()
        self.part.unlink(missing_ok=True)


def _label_dimensions(file: h5py.File, names: dict[str, tuple[str, ...]]) -> None:
    """Dimension scales, so that xarray and netCDF readers see named dimensions."""
    for dataset, dimensions in names.items():
        for axis, name in enumerate(dimensions):
            if name not in file:
                size = file[dataset].shape[axis]
                scale = file.create_dataset(name, data=np.arange(size, dtype="int32"))
                scale.make_scale(name)
            file[dataset].dims[axis].label = name
            file[dataset].dims[axis].attach_scale(file[name])


def _panels_of(file: h5py.File, path: Path, layout: Layout, count: int | None = None) -> Iterator[Panel]:
    """The first `count` blocks, all if left out, in the order they were written, some at a time."""
    count = layout.count if count is None else count
    group = layout.blocks_at_once
    for start in range(0, count, group):
        some = slice(start, min(start + group, count))
        try:
            blocks = file["jacobian"][some]
        except OSError as error:
            raise VerificationError(
                f"{path}: blocks {some.start}.. are damaged; delete it and run again ({error})"
            ) from error
        yield Panel(
            tuple(int(t) for t in file["row_token"][some]),
            tuple(int(t) for t in file["column_token"][some]),
            blocks,
        )


class Shard:
    """A Jacobian on disk; a source for `spectra`. Each reading opens the file anew."""

    def __init__(self, path: Path) -> None:
        """Raises VerificationError for a damaged file, InputError for one of another schema."""
        self.path = path
        with self._open() as file, door(path, "delete it and run again"):
            if not {"identity", "schema", "evidence"} <= set(file.attrs) or "jacobian" not in file:
                raise VerificationError(f"{path} is not a shard of tightpass; delete it and run again")
            if file.attrs["schema"] != SCHEMA:
                raise InputError(f"{path} has schema {file.attrs['schema']}, this version reads {SCHEMA}")
            self.identity = str(file.attrs["identity"])
            self.evidence = _evidence(file.attrs["evidence"])
            self.layout = _layout(file)

    def _open(self) -> h5py.File:
        try:
            return h5py.File(self.path, "r", locking=False)  # a published shard never changes
        except OSError as error:
            raise VerificationError(f"{self.path} cannot be read as HDF5 ({error}); delete it and run again") from error

    @property
    def structure(self) -> Structure:
        return self.layout.structure

    @property
    def shape(self) -> tuple[int, int]:
        return self.layout.shape

    @property
    def d_out(self) -> int:
        return self.layout.d_out

    @property
    def d_in(self) -> int:
        return self.layout.d_in

    def panels(self) -> Iterator[Panel]:
        """The blocks in the order they were written, about 64 MiB at a time."""
        with self._open() as file:
            yield from _panels_of(file, self.path, self.layout)

    def check(self) -> None:
        """Reads every chunk (HDF5 compares its checksum) and every index.

        Raises VerificationError if a chunk is damaged, a block is missing, or the energy is not as recorded.
        """
        expected = [(t, s) for t in range(self.layout.tokens_out) for s in self.structure.row(t, self.layout.tokens_in)]
        with self._open() as file:
            try:
                file["x"][()]
            except OSError as error:
                raise VerificationError(
                    f"{self.path}: x is damaged; delete the file and run again ({error})"
                ) from error
        found: list[tuple[int, int]] = []
        energy = 0.0
        for panel in self.panels():
            found += zip(panel.rows, panel.columns, strict=True)
            energy += squared_norm(on_host(panel.blocks))
        if found != expected:
            raise VerificationError(f"{self.path}: blocks are missing or out of order")
        recorded = self.evidence.energy
        if not abs(energy - recorded) <= 1e-9 * max(energy, recorded):
            raise VerificationError(f"{self.path}: ‖J‖_F² is {energy:.17g}, recorded {recorded:.17g}")


def _evidence(text: Any) -> Evidence:
    try:
        evidence = parsed(Evidence, text)
        check_evidence(evidence)
    except ValueError as error:
        raise ValueError(f"evidence: {error}") from None
    return evidence


def _layout(file: h5py.File) -> Layout:
    """Raises ValueError where structure, tokens and arrays do not fit together."""
    name = str(file.attrs["structure"])
    if name not in STRUCTURES:
        raise ValueError(f"structure: expected one of {', '.join(STRUCTURES)}, got {name!r}")
    tokens_out, tokens_in = int(file.attrs["tokens_out"]), int(file.attrs["tokens_in"])
    if min(tokens_out, tokens_in) < 1:
        raise ValueError(f"tokens: expected at least 1, got {tokens_out} and {tokens_in}")
    count, d_out, d_in = file["jacobian"].shape
    layout = Layout(STRUCTURES[name], tokens_out, tokens_in, d_out, d_in, str(file["jacobian"].dtype))
    if layout.dtype not in ("float32", "float64"):
        raise ValueError(f"jacobian: expected float32 or float64, got {layout.dtype}")
    if count != layout.count:
        raise ValueError(f"{count} blocks, expected {layout.count}")
    for tokens in ("row_token", "column_token"):
        if file[tokens].shape != (count,):
            raise ValueError(f"{tokens}: expected {count} entries, got shape {file[tokens].shape}")
    if file["x"].ndim != 2:
        raise ValueError(f"x: expected a matrix, got shape {file['x'].shape}")
    return layout


def write_shard(
    path: Path, layout: Layout, identity: str, x: np.ndarray, fill: Callable[[ShardWriter], dict[str, Any]]
) -> ShardWriter:
    """Lets `fill` write panels, and read them back, and return the evidence. The closed part awaits publish or discard.

    A part is removed if `fill` raises.
    """
    writer = ShardWriter(path, layout, identity, x)
    try:
        writer.close(fill(writer))
    except BaseException:
        writer.discard()
        raise
    return writer
