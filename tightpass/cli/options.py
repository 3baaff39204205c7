"""The fields of `Config` as flags of a command, so that flags and fields cannot drift apart; and errors as exit codes."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from tightpass.cli.ends import unprinted
from tightpass.errors import InterruptedRunError, TightpassError
from tightpass.report.say import give_up_stdout, say
from tightpass.runs.question import PYTHON_ONLY, Config

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, all else on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Directory = Annotated[str, typer.Argument(metavar="DIR", help="A run directory.")]


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the fields of `Config` as flags."""

    @functools.wraps(command)
    def wrapped(config: str | None, debug: bool, json: bool, **flags: Any) -> None:
        given = {name: value for name, value in flags.items() if value is not None}

        def act() -> None:
            command(Config.read(config, **given) if config else Config.of(**given), json)

        guarded(act, debug)

    flagged = [name for name in Config.model_fields if name not in PYTHON_ONLY]
    parameters = [_flag(name, Config.model_fields[name]) for name in flagged]
    for name, kind, default in (
        ("config", Annotated[str | None, typer.Option(help="YAML file with any of these options; flags win.")], None),
        ("json", Json, False),
        ("debug", Debug, False),
    ):
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default))
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapped


def _flag(name: str, field: Any) -> inspect.Parameter:
    """One option; None stands for "not given", so that a YAML file can supply it.

    Values stay text here: `Config` parses them, with one wording of errors for flags, YAML and keywords.
    """
    default = "" if field.default is None else f" (default {_shown(field.default)})"
    flag = "--" + name.replace("_", "-")
    if field.annotation is bool:
        names = flag if name == "discard_jacobian" else f"{flag}/--no-{name.replace('_', '-')}"
        option = typer.Option(names, help=field.description + default, show_default=False)
        kind: Any = bool
    else:
        metavar = "INT" if field.annotation in (int, int | None) else "TEXT"
        option = typer.Option(flag, help=field.description + default, show_default=False, metavar=metavar)
        kind = str
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind | None, option], default=None
    )


def _shown(default: Any) -> str:
    return {True: "yes", False: "no"}.get(default, str(default)) if isinstance(default, bool) else str(default)


def guarded(act: Callable[[], None], debug: bool = False) -> None:
    """Runs `act`; the package's own errors become one or two lines and their exit code."""
    try:
        act()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        give_up_stdout()
        raise typer.Exit(0) from None
    except TightpassError as error:
        if debug:
            raise
        _fail(str(error), error.exit_code)
    except OSError as error:
        if debug:
            raise
        if error.filename is None:  # not of a file, but of stdout
            give_up_stdout()
            _fail(unprinted(error), 2)
        _fail(f"{error.strerror or error}: {error.filename}", 2)
    except KeyboardInterrupt:
        if debug:
            raise
        _fail("interrupted; the same command continues where this one stopped", InterruptedRunError.exit_code)


def _fail(message: str, code: int) -> None:
    say(f"error: {message}")
    raise typer.Exit(code) from None
