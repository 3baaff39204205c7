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
from tightpass.models.files import fault
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


NEWER = {
    "file appears to be version": "is of a version that this gguf cannot read",
    "is not a valid GGMLQuantizationType": "holds a tensor of a type that this gguf does not know",
}
"""What the package says of files that are newer than itself, and what is said here."""


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in a file, and how: its shape as torch has it, its type by gguf's number, its first byte."""

    shape: tuple[int, ...]
    kind: Any
    start: int
    size: int

    @property
    def row_bytes(self) -> int:
        """Of one row, which is quantised by itself."""
        return self.size // math.prod(self.shape[:-1])


class GGUF:
    """A GGUF file: `Stored`, under the names that llama.cpp gave."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fields = _read(path)
        self.tensors = {
            t.name: Tensor(tuple(int(n) for n in reversed(t.shape)), t.tensor_type, int(t.data_offset), int(t.n_bytes))
            for t in self._fields.tensors
        }
        self.shapes = {name: tensor.shape for name, tensor in self.tensors.items()}

    def field(self, name: str, default: Any = None) -> Any:
        """What the file says under a name."""
        found = self._fields.get_field(name)
        return default if found is None else found.contents()

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
            sizes[tensor.kind.name] = sizes.get(tensor.kind.name, 0) + tensor.size
        return tuple(name for name in sorted(sizes, key=lambda name: -sizes[name]) if name not in PLAIN)

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
        count = (last - first) * tensor.row_bytes
        data = np.fromfile(self.path, np.uint8, count, offset=tensor.start + first * tensor.row_bytes)
        data = data.reshape(last - first, tensor.row_bytes)
        return data.view(np.float64) if tensor.kind.name == "F64" else package().dequantize(data, tensor.kind)


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


def _read(path: Path) -> Any:
    """Its header. Raises InputError if there is none, or only some of it."""
    with path.open("rb") as stream:
        start = stream.read(4)
    if start != b"GGUF":
        raise InputError(f"{path} {fault(path) or 'is no GGUF file'}; fetch it again")
    try:
        return package().GGUFReader(path)
    except Exception as error:  # whatever bytes that are no header make the package raise
        said = " ".join(str(error).split())
        for sign, what in NEWER.items():
            if sign in said:
                raise InputError(f"{path} {what} (pip install --upgrade gguf, or give another file)") from error
        raise InputError(
            f"{path} is truncated or damaged ({type(error).__name__}: {said[:80]}); fetch it again"
        ) from error


def _refuse_parts(file: GGUF) -> None:
    count = int(file.field("split.count", 1))
    if count > 1:
        raise InputError(
            f"{file.path} is one of {count} parts; merge them with `llama-gguf-split --merge` and give the result"
        )


def _refuse_truncated(file: GGUF) -> None:
    needed = max((t.start + t.size for t in file.tensors.values()), default=0)
    there = file.path.stat().st_size
    if there < needed:
        raise InputError(f"{file.path} is truncated: {there} bytes, expected {needed}; fetch it again")


def _refuse_unknown_types(file: GGUF) -> None:
    """Raises InputError, naming a tensor, for a type that the package cannot dequantise."""
    first = {tensor.kind: name for name, tensor in reversed(file.tensors.items())}
    for kind, name in first.items():
        if kind.name not in PLAIN and not _can_dequantise(kind):
            raise InputError(
                f"{name} in {file.path} is quantised as {kind.name}, which the package gguf cannot dequantise; "
                "give the model in another type, such as Q8_0 or F16"
            )


def _can_dequantise(kind: Any) -> bool:
    """Tried on one block of zeros."""
    gguf = package()
    try:
        gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except (NotImplementedError, KeyError):
        return False
    return True


def gguf_in(directory: Path) -> Path | None:
    """The GGUF file of a directory, if there is one. Raises InputError for several."""
    found = sorted(directory.glob(f"*{SUFFIX}"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
        raise InputError(f"{directory} holds {len(found)} GGUF files ({names}); give one of them")
    return found[0] if found else None
