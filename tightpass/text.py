"""Text as it was written: UTF-8 whatever the locale, with or without a byte order mark, whole."""

from __future__ import annotations

import re
from typing import Any

from tightpass import doors
from tightpass.errors import InputError


def decoded(content: bytes, name: str) -> str:
    """The text of a file's bytes, line ends as \\n. Raises InputError, with the file's name, if it is not UTF-8."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"cannot read {name}: it is not UTF-8 text") from None
    return re.sub("\r\n?", "\n", text)


def read(path: Any) -> str:
    """The text of a file. Raises InputError, with its name, if it cannot be read."""
    try:
        content = doors.path("the file", path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    return decoded(content, path)


def check(text: str, name: str) -> None:
    """Raises InputError for what is no text, and for half of a surrogate pair, which is no character and has no tokens."""
    if not isinstance(text, str):
        raise InputError(
            f"the {name} must be one string, got {type(text).__name__}; several texts go one by one, or to prompts"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the {name} has {text[error.start]!r} at position {error.start}, which is half of a surrogate pair and no "
            "character; give Unicode text (in UTF-8, on the command line)"
        ) from None
