"""What was stored as JSON, read back into the dataclass that it was: once, and checked."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from tightpass.confidence import CONFIDENCE
from tightpass.errors import InputError, TightpassError, VerificationError
from tightpass.rank.records import Evidence, Part

T = TypeVar("T")


def parsed(kind: type[T], text: Any) -> T:
    """A dataclass from its JSON. Raises ValueError, naming the field, for what is not JSON, is missing, or is of another type."""
    if not isinstance(text, str | bytes):
        raise ValueError(f"expected JSON text, got {type(text).__name__}")
    try:
        return _adapter(kind).validate_json(text, strict=True)  # type: ignore[no-any-return, arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where}: {first['msg']}" if where else str(first["msg"])) from None


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Made once a kind: it takes milliseconds."""
    return TypeAdapter(kind)


def check_evidence(evidence: Evidence) -> None:
    """Raises ValueError for values that no computation gives."""
    check_part(evidence.arithmetic)
    if not evidence.bounds:
        raise ValueError("bounds: expected at least one")
    if not 0 <= evidence.energy < math.inf:
        raise ValueError(f"energy: expected a finite number ≥ 0, got {evidence.energy}")
    if evidence.excess is not None and not evidence.excess >= 0:
        raise ValueError(f"excess: expected a number ≥ 0, got {evidence.excess}")
    if evidence.kinks < 0:
        raise ValueError(f"kinks: expected a count, got {evidence.kinks}")


def check_part(part: Part) -> None:
    """Raises ValueError for a bound that is none, or an unknown word of confidence."""
    if not part.bound >= 0 or not 0 <= part.chance <= 1:
        raise ValueError(
            f"{part.name}: expected a bound ≥ 0 and a chance of 0 to 1, got {part.bound} and {part.chance}"
        )
    if part.confidence not in CONFIDENCE:
        raise ValueError(f"{part.name}: confidence must be one of {', '.join(CONFIDENCE)}, got {part.confidence!r}")


@contextmanager
def door(path: Path, remedy: str) -> Iterator[None]:
    """Whatever a damaged file leads to while it is read becomes a VerificationError that names it and what to do."""
    try:
        yield
    except TightpassError:
        raise
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: permission denied") from error
    except FileNotFoundError as error:
        raise InputError(f"{path} is not there") from error
    except OSError as error:
        if error.errno == errno.EACCES or "ermission denied" in str(error):  # h5py has it in words
            raise InputError(f"{path} cannot be read: permission denied") from error
        raise VerificationError(f"{path} is damaged ({' '.join(str(error).split())}); {remedy}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        missing = f"{error} is missing" if isinstance(error, KeyError) else error
        reason = " ".join(str(missing).split()) or type(error).__name__
        raise VerificationError(f"{path} is damaged ({reason}); {remedy}") from error
