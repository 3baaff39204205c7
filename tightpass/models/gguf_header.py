"""The header of a GGUF file: what it says of itself, and where its tensors lie.

Not by `gguf.GGUFReader`, which keeps two arrays an element of every list: seconds, and hundreds of MiB, for a large vocabulary.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tightpass.errors import InputError
from tightpass.models.files import fault

VERSIONS = (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Kinds of values that are one number, as `struct` calls them."""
TEXT, LIST = 8, 9
ALIGNED = 32
"""Bytes that tensors are aligned to, where a file does not say."""


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file: its shape as torch has it, GGML's number for its type, and its first byte."""

    shape: tuple[int, ...]
    kind: int
    start: int

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a file says, by name, and its tensors."""

    fields: dict[str, Any]
    tensors: dict[str, Tensor]


def read_header(path: Path) -> Header:
    """Raises InputError if the file has none, only some of it, or one of another version."""
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise InputError(f"{path} {fault(path) or 'is no GGUF file'}; fetch it again")
        try:
            return _header(path, _Stream(stream, path.stat().st_size))
        except (EOFError, KeyError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is truncated or damaged: its header is cut short; fetch it again") from error


class _Stream:
    """Little-endian values, one after the other. Raises EOFError where the file ends."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.stream, self.size = stream, size

    def take(self, count: int) -> bytes:
        if count > self.size - self.stream.tell():
            raise EOFError
        return self.stream.read(count)

    def numbers(self, code: str, count: int) -> tuple[Any, ...]:
        return struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(f"<{code}")))

    def number(self, code: str) -> Any:
        return self.numbers(code, 1)[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode()

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        return self.elements(self.number("I"), self.number("Q")) if kind == LIST else self.number(SCALARS[kind])

    def elements(self, kind: int, count: int) -> list[Any]:
        return list(self.numbers(SCALARS[kind], count)) if kind in SCALARS else [self.value(kind) for _ in range(count)]


def _header(path: Path, stream: _Stream) -> Header:
    version, tensors, fields = stream.number("I"), stream.number("Q"), stream.number("Q")
    if version not in VERSIONS:
        raise InputError(f"{path} is GGUF of version {version}, expected 2 or 3; convert the model anew")
    said = {stream.text(): stream.value(stream.number("I")) for _ in range(fields)}
    listed = [_tensor(stream) for _ in range(tensors)]
    aligned = said.get("general.alignment", ALIGNED)
    start = -(-stream.stream.tell() // aligned) * aligned
    return Header(said, {name: Tensor(shape, kind, start + offset) for name, shape, kind, offset in listed})


def _tensor(stream: _Stream) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type and place among the tensors."""
    name = stream.text()
    shape = stream.numbers("Q", stream.number("I"))
    return name, tuple(reversed(shape)), stream.number("I"), stream.number("Q")
