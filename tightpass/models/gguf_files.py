"""GGUF files: what is in them, one tensor at a time, dequantised by the package `gguf`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tightpass.errors import InputError
from tightpass.models.gguf_header import Tensor, read_header
from tightpass.models.stored import spans

SUFFIX = ".gguf"
PLAIN = ("F32", "F16", "BF16", "F64")
"""Types of tensors that hold numbers, as they were in the model."""


def package() -> Any:
    """The package that reads such files. Raises InputError where it is not installed."""
    try:
        import gguf
    except ImportError:
        raise InputError(
            "GGUF files are read by the package gguf, which is not installed: pip install 'tightpass[gguf]'"
        ) from None
    return gguf


@dataclass(frozen=True)
class Type:
    """A type of tensors, as the package has it: numbers in a block, which is quantised by itself, and bytes of one."""

    kind: Any
    numbers: int
    size: int

    @property
    def name(self) -> str:
        return str(self.kind.name)

    def bytes_of(self, numbers: int) -> int:
        return numbers // self.numbers * self.size

    def dequantised(self, data: Any) -> Any:
        """Rows of bytes as rows of float32, or of float64 where they are stored so."""
        return data.view(np.float64) if self.name == "F64" else package().dequantize(data, self.kind)

    @property
    def can_be_read(self) -> bool:
        """Tried on one block of zeros."""
        try:
            self.dequantised(np.zeros((1, self.size), np.uint8))
        except NotImplementedError:
            return False
        return True


def _type(path: Path, kind: int) -> Type:
    """Raises InputError for a number that the package does not know."""
    gguf = package()
    try:
        found = gguf.GGMLQuantizationType(kind)
    except ValueError:
        raise InputError(
            f"{path} holds a tensor of a type (number {kind}) that this version of gguf does not know; "
            "pip install --upgrade gguf, or give the model in another type"
        ) from None
    return Type(found, *gguf.GGML_QUANT_SIZES[found])


class GGUF:
    """A GGUF file: `Stored`, under the names that llama.cpp gave."""

    def __init__(self, path: Path) -> None:
        self.path, header = path, read_header(path)
        self.fields, self.tensors = header.fields, header.tensors
        self.types = {kind: _type(path, kind) for kind in {tensor.kind for tensor in self.tensors.values()}}
        self.shapes = {name: tensor.shape for name, tensor in self.tensors.items()}

    def field(self, name: str, default: Any = None) -> Any:
        """What the file says under a name."""
        return self.fields.get(name, default)

    @property
    def architecture(self) -> str:
        return str(self.field("general.architecture"))

    def said(self, name: str, default: Any = None) -> Any:
        """What it says of its architecture."""
        return self.field(f"{self.architecture}.{name}", default)

    @property
    def quantised(self) -> tuple[str, ...]:
        """The types of tensors that are not numbers but codes for such, the most frequent one first."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            name = self.types[tensor.kind].name
            sizes[name] = sizes.get(name, 0) + tensor.numbers
        return tuple(sorted(set(sizes) - set(PLAIN), key=lambda name: -sizes[name]))

    def read(self, name: str, rows: Sequence[int] | None = None) -> torch.Tensor:
        """A tensor, or some of its rows, in float32 (or float64, if it is stored so)."""
        tensor = self.tensors[name]
        if rows is None or len(tensor.shape) < 2:
            flat = self._rows(tensor, 0, math.prod(tensor.shape[:-1]))
            whole = torch.from_numpy(flat).reshape(tensor.shape)
            return whole if rows is None else whole[list(rows)]
        inner = math.prod(tensor.shape[1:-1])
        parts = [self._rows(tensor, first * inner, last * inner) for first, last in spans(rows)]
        return torch.from_numpy(np.concatenate(parts)).reshape(-1, *tensor.shape[1:])

    def _rows(self, tensor: Tensor, first: int, last: int) -> Any:
        """A stretch of rows, two-dimensional, in memory of its own."""
        kind = self.types[tensor.kind]
        row = kind.bytes_of(tensor.shape[-1])
        data = np.fromfile(self.path, np.uint8, (last - first) * row, offset=tensor.start + first * row)
        return kind.dequantised(data.reshape(last - first, row))


def opened(path: Path) -> GGUF:
    """A GGUF file, checked: whole, alone, and of types that can be dequantised. Raises InputError if it is not."""
    package()
    state = path.stat()
    return _opened(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=1)
def _opened(path: Path, _size: int, _changed: int) -> GGUF:
    file = GGUF(path)
    _refuse_parts(file)
    _refuse_truncated(file)
    _refuse_unknown_types(file)
    return file


def _refuse_parts(file: GGUF) -> None:
    count = int(file.field("split.count", 1))
    if count > 1:
        raise InputError(
            f"{file.path} is one of {count} parts; merge them with `llama-gguf-split --merge` and give the result"
        )


def _refuse_truncated(file: GGUF) -> None:
    needed = max((t.start + file.types[t.kind].bytes_of(t.numbers) for t in file.tensors.values()), default=0)
    there = file.path.stat().st_size
    if there < needed:
        raise InputError(f"{file.path} is truncated: {there} bytes, expected {needed}; fetch it again")


def _refuse_unknown_types(file: GGUF) -> None:
    """Raises InputError, naming a tensor, for a type that the package cannot dequantise."""
    first = {tensor.kind: name for name, tensor in reversed(file.tensors.items())}
    for number, name in first.items():
        kind = file.types[number]
        if not kind.can_be_read:
            raise InputError(
                f"{name} in {file.path} is quantised as {kind.name}, which the package gguf cannot dequantise; "
                "give the model in another type, such as Q8_0 or F16"
            )


def gguf_in(directory: Path) -> Path | None:
    """The GGUF file of a directory, if there is one. Raises InputError for several."""
    found = sorted(directory.glob(f"*{SUFFIX}"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
        raise InputError(f"{directory} holds {len(found)} GGUF files ({names}); give one of them")
    return found[0] if found else None
