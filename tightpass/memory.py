"""How much memory there is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

from tightpass.units import parse_bytes


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
