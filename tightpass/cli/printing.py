"""What commands print: tables, JSON, a progress bar."""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tightpass.errors import TightpassError
from tightpass.report import table
from tightpass.report.say import give_up_stdout, say, spells_unicode
from tightpass.runs.opened import Run

stderr = Console(stderr=True)


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


def document(opened: Any) -> dict[str, Any]:
    """A run, or the runs of several prompts, as JSON values."""
    if isinstance(opened, Run):
        rows = zip(table.as_json(opened.spectra), opened.records, strict=True)
        jobs = [row | {"seconds": record.seconds, "made": record.made} for row, record in rows]
        return {"provenance": opened.provenance, "jobs": jobs}
    summary = opened.table().reset_index()
    return {
        "spread": json.loads(summary.to_json(orient="records", double_precision=15)),
        "prompts": [{"name": run.directory.name, "text": run.config.text, **document(run)} for run in opened.runs],
    }


def _console() -> Console:
    return Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 160)


def show_opened(opened: Any) -> None:
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
    if provenance["weights"].startswith("dequantised"):
        console.print(
            f"Weights are {provenance['weights']}: the numbers are those of the quantised model, not of the one before."
        )
    if provenance["tokens"].startswith("random"):
        console.print(f"Tokens are {provenance['tokens']}.")


def print_json(document: Any) -> None:
    print(json.dumps(_spelled(document), indent=2, ensure_ascii=not spells_unicode(), allow_nan=False))


def _spelled(value: Any) -> Any:
    """As JSON has it: null for infinity (a fall to exactly 0) and for what is no number."""
    if isinstance(value, dict):
        return {key: _spelled(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
