"""A file under its name is whole: it is written under another, in the same directory, and renamed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def part_of(path: Path) -> Path:
    """Where a file is written before it gets its name: one that nobody else uses."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.part")


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """Yields the part to write to; it is synced and gets its name when the context is left, and is removed where that fails."""
    part = part_of(path)
    try:
        yield part
        sync(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flushes a file, or a directory's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
