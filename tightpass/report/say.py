"""Words for people, where an output may be closed, full, or unable to spell them."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress


def say(message: str) -> None:
    """A line on stderr; nothing where that is closed too."""
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(message, file=sys.stderr, flush=True)


class Closed(io.TextIOBase):
    """A stdout that was closed before the process began: what is printed is dropped, and the next flush says so, once.

    It holds a file of the system's, so that no other one gets stdout's number, and what libraries print with it.
    """

    encoding = "utf-8"

    def __init__(self) -> None:
        self.nowhere = os.open(os.devnull, os.O_WRONLY)
        self.lost = False

    def fileno(self) -> int:
        return self.nowhere

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        self.lost = self.lost or bool(text)
        return len(text)

    def flush(self) -> None:
        if self.lost:
            self.lost = False
            raise OSError(errno.EBADF, "stdout is closed")


def make_printable() -> None:
    """Lets anything be printed: what an encoding cannot spell is escaped; a closed stdout says what was lost, a closed
    stderr drops it."""
    if sys.stdout is None:
        sys.stdout = Closed()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def give_up_stdout() -> None:
    """Sends what is left in stdout's buffer nowhere, so that the end of the process does not fail on it again."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def spells_unicode() -> bool:
    """Whether stdout can carry any character."""
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")
