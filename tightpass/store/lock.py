"""One writer a directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tightpass.errors import InputError


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Holds an advisory lock on a directory; the system drops it when the process ends, however it ends.

    Raises InputError if another process holds it.
    """
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another run is writing to {directory}; wait for it, or choose another --out") from None
        yield
    finally:
        os.close(handle)
