"""How much memory there is, and how to write it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

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


def memory_limit(memory: str | None) -> int:
    """Bytes to stay within: as given, or 60 % of what the machine and its control group have free."""
    return parse_bytes(memory) if memory is not None else int(0.6 * free_memory())


def free_memory(groups: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self/cgroup")) -> int:
    """Free bytes of the machine, or of the tightest control group (v1 or v2) that this process is in.

    groups, process   where the groups' files are, and where it says which of them are this process's own
    """
    return max(0, min([int(psutil.virtual_memory().available), *_left_in_groups(groups, process)]))


def _left_in_groups(groups: Path, process: Path) -> Iterator[int]:
    """What the process's own group and each that it lies in have left, as far as they have limits."""
    try:
        lines = [line.split(":", 2) for line in process.read_text().splitlines()]
    except OSError:  # no Linux
        return
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers == "":
            root, names = groups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = groups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        parts = [part for part in path.split("/") if part]
        if ".." in parts:  # outside of what this process is shown
            parts = []
        for depth in range(
            len(parts), -1, -1
        ):  # in a container the path may be the host's, of which only the root is there
            left = _left(root.joinpath(*parts[:depth]), *names)
            if left is not None:
                yield left


def _left(group: Path, limit: str, used: str, cache: str) -> int | None:
    """Limit less use of one group, without the cached files that make room when asked; None where it has no limit."""
    try:
        most, taken = int((group / limit).read_text()), int((group / used).read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None
    try:
        counts = dict(line.split(" ", 1) for line in (group / "memory.stat").read_text().splitlines())
        taken -= int(counts.get(cache, 0))
    except (OSError, ValueError):
        pass
    return most - taken
