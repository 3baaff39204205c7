"""A file under its name is whole: it is written under another, in the same directory, and renamed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def part_of(path: Path) -> Path:
    """Where a file is written before it gets its name: one that nobody else uses."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.part")


def publish(part: Path, path: Path, check: Callable[[Path], Any] | None = None) -> None:
    """Gives a finished part its name: synced, checked by reading it, renamed, and the directory synced."""
    sync(part)
    if check is not None:
        check(part)
    os.replace(part, path)
    sync(path.parent)


@contextmanager
def published(path: Path, check: Callable[[Path], Any] | None = None) -> Iterator[Path]:
    """Yields the part to write to; it is published when the context is left, and removed where that fails."""
    part = part_of(path)
    try:
        yield part
        publish(part, path, check)
    finally:
        part.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flushes a file, or a directory's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
