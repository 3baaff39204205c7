"""One job after the other, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from tightpass.runs.jobs import Job


def serial(do: Callable[[Job], None], jobs: Iterable[Job]) -> Iterator[Job]:
    """Does the jobs in order, and gives each back once it is done."""
    for job in jobs:
        do(job)
        yield job
