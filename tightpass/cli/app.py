"""The commands."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated, Any

import typer

from tightpass.cli.ends import ending_well
from tightpass.cli.options import Debug, Directory, Json, guarded, with_options
from tightpass.cli.printing import document, print_json, printing_of, progress_bar, remembered_interrupts, show_opened
from tightpass.errors import InputError, InterruptedRunError
from tightpass.report.say import say
from tightpass.runs.question import Config
from tightpass.units import format_bytes

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Through how few directions does a transformer block pass information?",
)


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
            print_json(asked | document(finished))
            return
        show_opened(finished)
        shards = ", shards/" if finished.config.keeps_jacobian else ""
        where = "" if isinstance(finished, Run) else "prompts/*/"
        print(f"{seconds:.1f} s · {finished.directory}: {where}{{ranks,spectra,curves}}.png, results.h5{shards}")


@app.command("plan")
@with_options
def plan_command(config: Config, as_json: bool) -> None:
    """Say what `run` would do: jobs, FLOPs, bytes on disk, peak memory. Computes nothing."""
    quiet_libraries()
    from tightpass.runs.check import check_fits, resolve_for_plan

    asked = resolve_for_plan(config)
    planned = asked.plan
    if as_json:
        print_json(planned.as_dict())
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
            "peak memory": format_bytes(planned.memory)
            + (", layers read from the files one at a time" if planned.in_turn else ""),
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
        from tightpass.report import lines
        from tightpass.runs.opened import Run, open
        from tightpass.runs.provenance import in_a_line

        if csv + values + explain + as_json > 1:
            raise InputError("give one of --csv, --values, --explain and --json")
        opened = open(directory)
        runs = [opened] if isinstance(opened, Run) else list(opened.runs)
        if csv:
            print(opened.table().to_csv(), end="")
        elif as_json:
            print_json(document(opened))
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
                    print("\n".join(lines.lines(record.spectrum)))
                    print(f"  {in_a_line(record)}")
        else:
            show_opened(opened)

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
            print_json(found.as_dict())
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
    guarded(lambda: _print_models(as_json))


def _print_models(as_json: bool) -> None:
    quiet_libraries()
    from tightpass.models.catalogue import families_by_route, known_models, real_weights

    known = known_models()
    if as_json:
        print_json([asdict(model) for model in known])
        return
    print(f"{'name':20} {'layers':>6} {'width':>6} {'heads':>6} {'positions':>9}  source")
    for m in known:
        print(f"{m.name:20} {m.layers:6} {m.width:6} {m.heads:6} {m.positions:9}  {m.source}")
    for alias, package in real_weights().items():
        print(f"{alias:20} {package}")
    print("\nAlso any local directory or Hub id in Hugging Face format, or GGUF file, of the families:")
    for route, families in families_by_route().items():
        print(f"  {route}: {', '.join(families)}")


@app.command("doctor")
def doctor_command(as_json: Json = False) -> None:
    """Say what this installation has: versions, threads, BLAS, GPU, memory."""
    guarded(lambda: _print_diagnosis(as_json))


def _print_diagnosis(as_json: bool) -> None:
    from tightpass.report.doctor import diagnosis

    found = diagnosis()
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        print(f"{name:14} {value}")


# Typer carries its own copy of click; the base of its public usage error is the same in either.
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]


def run() -> None:
    """The command of this process's arguments."""
    ending_well(_command)


def _command() -> Any:
    try:
        return app(standalone_mode=False)  # in this mode an Exit comes back as its code
    except typer.Abort:
        return InterruptedRunError.exit_code
    except USAGE_ERROR as error:
        if message := error.format_message():  # empty where the help was shown instead
            say(f"error: {message}")
        return 2
