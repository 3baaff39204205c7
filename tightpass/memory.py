"""How much memory there is, and how to write it."""

from __future__ import annotations

import re
from pathlib import Path

import psutil

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
    if not match or match[2].upper() not in UNITS or float(match[1]) <= 0:
        raise InputError(f"memory must be a size such as 4GiB or 500MB, got {text!r}")
    return int(float(match[1]) * UNITS[match[2].upper()])


def format_bytes(count: float) -> str:
    """4294967296 -> "4.0 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def memory_limit(memory: str | None) -> int:
    """Bytes to stay within: as given, or 60 % of what the machine and its control group have free."""
    return parse_bytes(memory) if memory is not None else int(0.6 * free_memory())


def free_memory(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Free bytes of the machine, or of its control group (v2) where that has less."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = (groups / "memory.max").read_text().strip()
        used = int((groups / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - used))
