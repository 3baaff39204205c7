"""A run directory that has been opened: its records, tables, figures and shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tightpass import doors
from tightpass.errors import InputError, VerificationError
from tightpass.rank.spectrum import Spectrum
from tightpass.report import figures
from tightpass.runs.directory import check_answers, config_of, is_begun, known, nothing_finished, shard_path
from tightpass.runs.prompts import Prompts, directory_of, texts_of
from tightpass.runs.provenance import made_differently
from tightpass.runs.question import Config
from tightpass.store.records import Record
from tightpass.store.shards import Shard

if TYPE_CHECKING:  # takes half a second, where tables are not asked for
    import pandas as pd


@dataclass(frozen=True)
class Run:
    """A run directory that has been opened; see `open` and `run`."""

    directory: Path
    config: Config
    records: tuple[Record, ...]
    provenance: dict[str, Any]
    token_ids: tuple[int, ...]

    def __getitem__(self, name: str) -> Spectrum:
        if doors.one_of(name, self.names):
            return self.spectra[self.names.index(name)]
        raise InputError(f"{self.directory} has no job {doors.shown(name)}; it has {', '.join(self.names)}")

    def __len__(self) -> int:
        """How many jobs are finished."""
        return len(self.records)

    def __iter__(self) -> Iterator[Spectrum]:
        """The spectra of the finished jobs, in order."""
        return iter(self.spectra)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    @property
    def names(self) -> list[str]:
        """The finished jobs, in order."""
        return [record.spectrum.name for record in self.records]

    @property
    def unfinished(self) -> list[str]:
        """Jobs of the question that are not done yet."""
        return [name for name in self.provenance["jobs"] if name not in self.names]

    @property
    def spectra(self) -> list[Spectrum]:
        return [record.spectrum for record in self.records]

    def table(self) -> pd.DataFrame:
        """One row a job: rank interval and flag, bound, floor, cliff, knee, soft measures."""
        from tightpass.report import frames

        return frames.frame(self.spectra)

    def values(self) -> pd.DataFrame:
        """One row a singular value: job, index (from 1), value, label, and of MLPs the token that it belongs to."""
        from tightpass.report import frames

        return frames.values(self.spectra)

    def plot(self) -> tuple[Path, Path, Path]:
        """Writes ranks.png, spectra.png and curves.png into the directory; returns their paths."""
        return figures.draw(self.spectra, self.title, self.directory)

    def shard(self, name: str) -> Shard:
        """The Jacobian of a job on disk.

        Raises InputError if there is no such job, or it was discarded, VerificationError for a damaged one or another job's.
        """
        path = shard_path(self.directory, self[name].name)
        if not path.is_file():
            raise InputError(
                f"the Jacobian of {name} was not kept in {self.directory} (discard_jacobian, or method topk)"
            )
        shard, record = Shard(path), self.records[self.names.index(name)]
        if shard.identity != record.identity:
            raise VerificationError(f"{path} belongs to another computation than the record of {name}")
        return shard

    @property
    def made_differently(self) -> list[str]:
        """What made the jobs and was not the same for all, a line each."""
        return made_differently(self.records)

    @property
    def title(self) -> str:
        """What was asked, in a line."""
        p = self.provenance
        name = Path(p["model"]).name if Path(p["model"]).is_absolute() else p["model"]
        random = "" if p["weights"] == "pretrained" else f", {p['weights']} weights"
        extras = ("" if self.config.norm else ", no norm") + (", residual" if self.config.residual else "")
        return f"{name}{random} · {self.config.block}{extras} · {len(self.token_ids)} {'token' if len(self.token_ids) == 1 else 'tokens'} · {self.config.dtype}"


def open(directory: str | Path) -> Run | Prompts:
    """Opens the directory of a run, or of the runs of several prompts.

    Raises InputError if it is none, or has no finished job yet.
    """
    path = doors.path("the run's directory", directory)
    config = config_of(path)
    if config.prompts is None:
        return open_single(path)
    texts = texts_of(config)
    places = [directory_of(path, number) for number in range(1, len(texts) + 1)]
    done = tuple(open_single(place) for place in places if is_begun(place))
    if not done:
        raise nothing_finished(path)
    return Prompts(path, config, tuple(texts), done)


def open_single(path: Path) -> Run:
    """Opens the directory of a run. Raises as `open` does."""
    config = config_of(path)
    records, common = known(path)
    check_answers(path, config, records, common)
    return Run(path, config, tuple(records), common.provenance, tuple(common.token_ids))
