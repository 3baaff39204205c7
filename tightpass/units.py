"""Sizes of memory, as people write and read them."""

from __future__ import annotations

import math
import re
from typing import Any

from tightpass import doors
from tightpass.errors import InputError

UNITS = {
    "": 1,
    "B": 1,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}


def parse_bytes(text: str) -> int:
    """ "4GiB" -> 4294967296. Raises InputError for anything else."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", text)
    size = float(match[1]) * UNITS.get(match[2].upper(), 0) if match else 0.0
    if not 1 <= size < math.inf:
        raise InputError(f"memory must be a size such as 4GiB or 500MB, got {doors.shown(text)}")
    return int(size)


def bytes_of(memory: Any) -> int | None:
    """A number of bytes, or a size in words, as a number; None, for no limit, stays. Raises InputError for anything else."""
    if isinstance(memory, str):
        return parse_bytes(memory)
    return None if memory is None else doors.whole("memory, in bytes or as 4GiB", memory, 1)


def format_bytes(count: float) -> str:
    """4294967296 -> "4.0 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError
