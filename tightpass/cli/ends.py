"""How a command ends: its exit code, and a line on stderr where something is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn

from tightpass.report.say import give_up_stdout, make_printable, say


def ending_well(act: Callable[[], Any]) -> NoReturn:
    """Runs what prints, and ends the process with what it returns, or 0; an output that is closed or full costs an exit code of
    its own, and no traceback."""
    make_printable()
    try:
        code = act() or 0
        sys.stdout.flush()
        sys.exit(code)
    except (BrokenPipeError, SystemExit) as error:
        if not _is_for_want_of_a_reader(error):
            raise
        give_up_stdout()
        sys.exit(0)
    except OSError as error:
        give_up_stdout()
        say(f"error: {unprinted(error)}")
        sys.exit(2)


def _is_for_want_of_a_reader(error: BaseException) -> bool:
    """Whether the reader, such as `head`, has seen enough. Typer and rich, which print as well, make an exit with code 1 of it."""
    return isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError)


def unprinted(error: OSError) -> str:
    return f"the output could not be printed: {error.strerror or error}"
