"""One question asked of several texts: a run for each, and how every measure spreads over them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tightpass import text
from tightpass.errors import InputError
from tightpass.runs.question import Config

if TYPE_CHECKING:
    import pandas as pd

    from tightpass.runs.opened import Run


@dataclass(frozen=True)
class Prompts:
    """The runs of several prompts, in the order of the file; each is an ordinary run in DIRECTORY/prompts/NUMBER."""

    directory: Path
    config: Config
    texts: tuple[str, ...]
    runs: tuple[Run, ...]

    @property
    def names(self) -> list[str]:
        """Of the prompts that are done: their numbers, counted from 1, as directories have them."""
        return [run.directory.name for run in self.runs]

    @property
    def unfinished(self) -> int:
        """Prompts that are not done, or not all of whose blocks are."""
        return len(self.texts) - sum(not run.unfinished for run in self.runs)

    @property
    def title(self) -> str:
        """What was asked, in a line."""
        return f"{self.runs[0].title} · {len(self.texts)} prompts"

    def table(self) -> pd.DataFrame:
        """Mean, sd, low and high of every measure, and its value for each prompt; indexed by (job, measure)."""
        from tightpass.report.spread import spread

        return spread([run.table() for run in self.runs], self.names)


def directory_of(directory: Path, number: int) -> Path:
    """Where the run of prompt `number`, counted from 1, goes."""
    return directory / "prompts" / f"{number:03d}"


def texts_of(config: Config) -> list[str]:
    """The prompts of a file's lines, blank ones left out, or as they were given.

    Raises InputError if the file cannot be read or has none.
    """
    given = config.prompts
    if given is None:
        raise InputError("no prompts were given")
    if isinstance(given, str):
        given = text.read(given).split("\n")  # splitlines would also cut at form feeds and U+2028
    texts = [line.strip(" \t\r\n") for line in given if line.strip()]
    if not texts:
        raise InputError(f"{config.prompts or 'prompts'} has no prompt; write one a line")
    return texts
