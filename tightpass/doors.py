"""What a caller hands in, at the door: whole numbers, sizes and places, or an InputError that says what was expected."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable
from numbers import Integral
from pathlib import Path
from typing import Any

from tightpass.errors import InputError

SEEDS = 2**63
"""Seeds lie below this: torch's generators take no more."""


def shown(value: Any) -> str:
    """A value in an error message: short whatever it is, and in one line."""
    return " ".join(reprlib.repr(value).split())[:120]


def whole(name: str, value: Any, least: int = 0, below: int | None = None) -> int:
    """An integer of Python or NumPy, no truth value. Raises InputError for anything else, and for one out of range."""
    limits = f"of at least {least}" if below is None else f"from {least} to {shown(below - 1)}"
    if (
        not isinstance(value, Integral)
        or isinstance(value, bool)
        or value < least
        or not (below is None or value < below)
    ):
        raise InputError(f"{name}: expected a whole number {limits}, got {shown(value)}")
    return int(value)


def seed(value: Any) -> int:
    """Of random numbers. Raises InputError for what is no seed."""
    return whole("seed", value, 0, SEEDS)


def path(name: str, value: Any) -> Path:
    """A place on the disk, ~ expanded. Raises InputError for what is none, whether or not anything is there."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise InputError(f"{name} must be a path, got {shown(value)}")
    if not os.fspath(value).strip():
        raise InputError(f"{name} is empty; expected a path")
    try:
        found = Path(value).expanduser()
        os.fsencode(found)
        found.exists()  # raises for a name that is too long
        if "\0" in str(found):
            raise ValueError("it holds a null character")
    except RuntimeError:
        raise InputError(f"cannot expand {shown(value)}: no such user") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
        raise InputError(f"{name} {shown(value)} cannot be used as a path: {reason}") from None
    return found


def flag(name: str, value: Any) -> bool:
    """A truth value of Python or NumPy. Raises InputError for anything else."""
    if type(value).__name__ not in ("bool", "bool_"):
        raise InputError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def one_of(value: Any, words: Iterable[str]) -> bool:
    """Whether a value is one of some words; arrays, which compare entry by entry, are not."""
    return isinstance(value, str) and value in words
