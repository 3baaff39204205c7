"""The command line: parses, calls, prints. No arithmetic here."""

from __future__ import annotations

import functools
import inspect
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tightpass.errors import InputError, InterruptedRunError, TightpassError
from tightpass.report.say import give_up_stdout, make_printable, say, spells_unicode
from tightpass.runs.question import Config
from tightpass.units import format_bytes

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Through how few directions does a transformer block pass information?",
)
stderr = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, all else on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Directory = Annotated[str, typer.Argument(metavar="DIR", help="A run directory.")]


def _print_version(asked: bool) -> None:
    if asked:
        from tightpass import __version__

        print(f"tightpass {__version__}")
        raise typer.Exit


@app.callback()
def common(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the fields of `Config` as flags, so that flags and fields cannot drift apart."""

    @functools.wraps(command)
    def wrapped(config: str | None, debug: bool, json: bool, **flags: Any) -> None:
        given = {name: value for name, value in flags.items() if value is not None}

        def act() -> None:
            command(Config.read(config, **given) if config else Config.of(**given), json)

        guarded(act, debug)

    parameters = [_flag(name, field) for name, field in Config.model_fields.items()]
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
            _fail(_unprinted(error), 2)
        _fail(f"{error.strerror or error}: {error.filename}", 2)
    except KeyboardInterrupt:
        if debug:
            raise
        _fail("interrupted; the same command continues where this one stopped", InterruptedRunError.exit_code)


def _unprinted(error: OSError) -> str:
    return f"the output could not be printed: {error.strerror or error}"


def _fail(message: str, code: int) -> None:
    say(f"error: {message}")
    raise typer.Exit(code) from None


def quiet_libraries() -> None:
    """Keeps transformers' advice out of the output; errors still come as exceptions."""
    import logging

    import transformers

    transformers.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


@app.command("run")
@with_options
def run_command(config: Config, as_json: bool) -> None:
    """Compute every block's Jacobian, spectrum and rank; continue an unfinished run."""
    quiet_libraries()
    from tightpass.runs.opened import Run
    from tightpass.runs.start import answer

    start = time.perf_counter()
    interrupted = remembered_interrupts()
    with progress_bar() as advance:

        def show(name: str, done: int, total: int) -> None:
            if interrupted:
                raise KeyboardInterrupt
            advance(name, done, total)

        finished = answer(config, show)
    seconds = time.perf_counter() - start
    with printing_of(f"they are in {finished.directory}"):
        if as_json:
            asked = {"directory": str(finished.directory), "question": finished.config.question(), "seconds": seconds}
            _print_json(asked | _document(finished))
            return
        _show(finished)
        shards = ", shards/" if finished.config.keeps_jacobian else ""
        where = "" if isinstance(finished, Run) else "prompts/*/"
        print(f"{seconds:.1f} s · {finished.directory}: {where}{{ranks,spectra,curves}}.png, results.h5{shards}")


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal, told of a job's name, how many are done and how many there are. Elsewhere nothing: of rich's bar
    even a disabled one leaves an empty line there (13.9)."""
    if not stderr.is_terminal:
        yield lambda name, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True) as bar:
        task = bar.add_task("loading", total=None)
        yield lambda name, done, total: bar.update(task, description=name, completed=done, total=total)


@contextmanager
def printing_of(known: str) -> Iterator[None]:
    """For what is known without being printed, on disk or by the exit code: that it cannot be printed is said, and is no
    failure."""
    try:
        yield
        sys.stdout.flush()
    except (BrokenPipeError, TightpassError):
        raise
    except (OSError, ValueError) as error:
        give_up_stdout()
        say(f"the results could not be printed ({getattr(error, 'strerror', None) or error}); {known}")


def remembered_interrupts() -> list[int]:
    """A list that Ctrl-C is added to, besides raising KeyboardInterrupt: Python drops one that is raised while an object
    is being cleared away, and the run would go on."""
    seen: list[int] = []

    def note(number: int, frame: Any) -> None:
        seen.append(number)
        signal.default_int_handler(number, frame)

    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, note)
    return seen


def _document(opened: Any) -> dict[str, Any]:
    """A run, or the runs of several prompts, as JSON values."""
    from tightpass.report import table
    from tightpass.runs.opened import Run

    if isinstance(opened, Run):
        rows = zip(table.as_json(opened.spectra), opened.records, strict=True)
        jobs = [row | {"seconds": record.seconds, "made": record.made} for row, record in rows]
        return {"provenance": opened.provenance, "jobs": jobs}
    summary = opened.table().reset_index()
    return {
        "spread": json.loads(summary.to_json(orient="records", double_precision=15)),
        "prompts": [{"name": run.directory.name, "text": run.config.text, **_document(run)} for run in opened.runs],
    }


def _console() -> Console:
    return Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 160)


def _show(opened: Any) -> None:
    from tightpass.report import table
    from tightpass.runs.opened import Run

    console = _console()
    if isinstance(opened, Run):
        console.print(table.rich_table(opened.spectra, opened.title))
        if opened.unfinished:
            console.print(
                f"{len(opened.unfinished)} of {len(opened.provenance['jobs'])} jobs are not done; the same run again does them."
            )
    else:
        console.print(table.rich_spread(opened.table(), opened.title))
        if opened.unfinished:
            console.print(
                f"{opened.unfinished} of {len(opened.texts)} prompts are not done; the same run again does them."
            )
    for run in [opened] if isinstance(opened, Run) else opened.runs:
        for line in run.made_differently:
            console.print(line if isinstance(opened, Run) else f"prompt {run.directory.name}: {line}")
    provenance = (opened if isinstance(opened, Run) else opened.runs[0]).provenance
    if provenance["weights"].startswith("random"):
        console.print(
            f"Weights are {provenance['weights']}: good for timing, their ranks say nothing about a trained model."
        )
    if provenance["tokens"].startswith("random"):
        console.print(f"Tokens are {provenance['tokens']}.")


def _print_json(document: Any) -> None:
    print(json.dumps(_spelled(document), indent=2, ensure_ascii=not spells_unicode(), allow_nan=False))


def _spelled(value: Any) -> Any:
    """As JSON has it: null for infinity (a fall to exactly 0) and for what is no number."""
    if isinstance(value, dict):
        return {key: _spelled(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@app.command("plan")
@with_options
def plan_command(config: Config, as_json: bool) -> None:
    """Say what `run` would do: jobs, FLOPs, bytes on disk, peak memory. Computes nothing."""
    quiet_libraries()
    from tightpass.runs.check import check_fits, resolve_for_plan

    asked = resolve_for_plan(config)
    planned = asked.plan
    if as_json:
        _print_json(planned.as_dict())
    else:
        jobs = (
            planned.jobs[0]
            if len(planned.jobs) == 1
            else f"{planned.jobs[0]} .. {planned.jobs[-1]} ({len(planned.jobs)})"
        )
        for name, value in {
            "model": f"{planned.model}, {planned.weights} weights",
            "jobs": jobs + (f", for each of {planned.texts} prompts" if planned.texts > 1 else ""),
            "Jacobian": f"{planned.shape[0]} × {planned.shape[1]}, {planned.structure}",
            "route": planned.route,
            "work": f"{planned.flops / 1e9:,.0f} GFLOP",
            "disk": format_bytes(planned.disk),
            "peak memory": format_bytes(planned.memory),
        }.items():
            print(f"{name:12} {value}")
    check_fits(asked)


@app.command("show")
def show_command(
    directory: Directory,
    csv: Annotated[bool, typer.Option("--csv", help="All columns as CSV.")] = False,
    values: Annotated[bool, typer.Option("--values", help="Every singular value with its label, as CSV.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="What each number is made of.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print the table of a run."""

    def act() -> None:
        from tightpass.report import explain as explanation
        from tightpass.runs.opened import Run, open
        from tightpass.runs.provenance import in_a_line

        if csv + values + explain + as_json > 1:
            raise InputError("give one of --csv, --values, --explain and --json")
        opened = open(directory)
        runs = [opened] if isinstance(opened, Run) else list(opened.runs)
        if csv:
            print(opened.table().to_csv(), end="")
        elif as_json:
            _print_json(_document(opened))
        elif values:
            parts = [
                run.values() if isinstance(opened, Run) else run.values().assign(prompt=run.directory.name)
                for run in runs
            ]
            for number, part in enumerate(parts):
                print(part.to_csv(index=False, header=number == 0), end="")
        elif explain:
            for run in runs:
                print(run.title if isinstance(opened, Run) else f"prompt {run.directory.name}: {run.title}")
                for record in run.records:
                    print("\n".join(explanation.lines(record.spectrum)))
                    print(f"  {in_a_line(record)}")
        else:
            _show(opened)

    guarded(act, debug)


@app.command("compare")
def compare_command(
    first: Annotated[str, typer.Argument(metavar="DIR", help="A run directory.")],
    second: Annotated[str, typer.Argument(metavar="DIR", help="Another.")],
    force: Annotated[bool, typer.Option("--force", help="Compare runs of different questions as well.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say whether two runs' spectra and ranks differ beyond their floors, which, and by how much."""

    def act() -> None:
        from tightpass.runs.compare import compare

        found = compare(first, second, force)
        if as_json:
            _print_json(found.as_dict())
            return
        for item in found.unlike:
            print(f"not the same question: {item}")
        for d in found.differences:
            print(d)
            a, b = d.ranks
            print(f"  ranks: {a} ({a.words}) and {b} ({b.words})")
        for letter, names in zip("AB", found.only, strict=True):
            if names:
                print(f"only in {letter}: {', '.join(names)}")
        moved = found.measures()
        moved = moved[moved["change"].abs() > 0]
        if len(moved):
            print("\nmeasures that are not the same in A and B:")
            print(moved.to_string(float_format=lambda value: f"{value:.6g}"))
        print(
            f"\n{len(found.different)} of {len(found.differences)} blocks differ beyond their floors ({found.confidence})"
        )

    guarded(act, debug)


@app.command("verify")
def verify_command(directory: Directory, debug: Debug = False) -> None:
    """Check a run's files: checksums, completeness, and spectra against Jacobians."""

    def act() -> None:
        from tightpass.runs.verify import verify

        lines = verify(directory)
        with printing_of("all checks passed"):
            print("\n".join(lines))

    guarded(act, debug)


@app.command("models")
def models_command(as_json: Json = False) -> None:
    """List the models known by a short name, and the families."""
    quiet_libraries()
    from tightpass.models.catalogue import known_models
    from tightpass.models.families.base import FAMILIES

    known = known_models()
    if as_json:
        _print_json([asdict(model) for model in known])
        return
    print(f"{'name':20} {'layers':>6} {'width':>6} {'heads':>6} {'positions':>9}  source")
    for m in known:
        print(f"{m.name:20} {m.layers:6} {m.width:6} {m.heads:6} {m.positions:9}  {m.source}")
    print(f"\nAlso any local directory or Hub id in Hugging Face format of the families: {', '.join(sorted(FAMILIES))}")


@app.command("doctor")
def doctor_command(as_json: Json = False) -> None:
    """Say what this installation has: versions, threads, BLAS, GPU, memory."""
    from tightpass.report.doctor import diagnosis

    found = diagnosis()
    if as_json:
        _print_json(found)
        return
    for name, value in found.items():
        print(f"{name:14} {value}")


# Typer carries its own copy of click; the base of its public usage error is the same in either.
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]


def main() -> None:
    """Entry point of `tightpass`."""
    make_printable()
    try:
        code = app(standalone_mode=False) or 0  # in this mode an Exit comes back as its code
        sys.stdout.flush()
        sys.exit(code)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        give_up_stdout()
        sys.exit(0)
    except OSError as error:
        give_up_stdout()
        say(f"error: {_unprinted(error)}")
        sys.exit(2)
    except typer.Abort:
        sys.exit(InterruptedRunError.exit_code)
    except USAGE_ERROR as error:
        if message := error.format_message():  # empty where the help was shown instead
            say(f"error: {message}")
        sys.exit(2)
