"""Words for people, where an output may be closed, full, or unable to spell them."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any


def say(message: str) -> None:
    """A line on stderr; nothing where that is closed too."""
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(message, file=sys.stderr, flush=True)


def make_printable() -> None:
    """Lets anything be printed: what an encoding cannot spell is escaped, and a closed stdout or stderr takes what it is
    given and drops it."""
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - until the process ends
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def give_up_stdout() -> None:
    """Sends what is left in stdout's buffer nowhere, so that the end of the process does not fail on it again."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def spells_unicode() -> bool:
    """Whether stdout can carry any character."""
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")
