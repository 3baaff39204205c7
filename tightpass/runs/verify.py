"""Do a run's files fit together?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tightpass import doors
from tightpass.confidence import tolerance
from tightpass.errors import VerificationError
from tightpass.rank.spectrum import Spectrum
from tightpass.runs.directory import (
    config_of,
    is_begun,
    nothing_finished,
    record_at,
    record_path,
    results_path,
    shard_path,
)
from tightpass.runs.opened import Run, open_single
from tightpass.runs.prompts import directory_of, texts_of
from tightpass.spectra.verify import SMALL, check_leading, check_values
from tightpass.store import results
from tightpass.store.records import Common, Record, content_hash
from tightpass.store.shards import Shard
from tightpass.structure import BlockDiagonal


def verify(directory: str | Path) -> list[str]:
    """Checks a run's files against each other; returns what was checked, a line a job.

    Every record against its hash; results.h5, where it is there, against the records; every chunk of every shard against its checksum, every block present, ‖J‖_F² as recorded and equal
    to Σσ², the stored labels and ranks against those that follow from values and floor; and, where that
    is cheap (block-diagonal, or up to 1024 rows), the singular values computed again. Raises VerificationError
    with a line for every file that is damaged or says otherwise than another, and where jobs are not done.
    """
    path, found = doors.path("the run's directory", directory), _Found()
    config = config_of(path)
    if config.prompts is None:
        _check_run(path, found)
    else:
        _check_prompts(path, len(texts_of(config)), found)
    if found.faults:
        raise VerificationError("\n".join(found.faults))
    return found.lines


class _Found:
    """What was checked, and what is wrong, a line each."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.faults: list[str] = []

    @contextmanager
    def noting(self, path: Path) -> Iterator[None]:
        """What is wrong with a file does not keep the others from being checked."""
        try:
            yield
        except VerificationError as error:
            said = " ".join(str(error).split("\n"))
            said = said if str(path) in said or ".h5" in said else f"{path}: {said}"
            if said not in self.faults:
                self.faults.append(said)


def _check_prompts(directory: Path, count: int, found: _Found) -> None:
    """The runs of all prompts."""
    places = [directory_of(directory, number) for number in range(1, count + 1)]
    begun = [place for place in places if is_begun(place)]
    if not begun:
        raise nothing_finished(directory)
    for place in begun:
        one = _Found()
        _check_run(place, one)
        found.lines += [f"{place.name} {line}" for line in one.lines]
        found.faults += one.faults
    if left := count - len(begun):
        found.faults.append(f"{left} of {count} prompts are not done; the same run again does the rest")


def _check_run(directory: Path, found: _Found) -> None:
    """One run."""
    for path in sorted(directory.glob("records/*.h5")):
        with found.noting(path):
            record_at(path)
    opened: Run | None = None
    if not found.faults:
        with found.noting(directory):
            opened = open_single(directory)
    if opened is None:
        _check_alone(directory, found)
        return
    with found.noting(results_path(directory)):
        _check_gathered(opened)
    for record in opened.records:
        with found.noting(record_path(directory, record.spectrum.name)):
            found.lines.append(_check_job(opened, record))
    if opened.unfinished:
        jobs = opened.provenance["jobs"]
        found.faults.append(
            f"{directory}: {len(opened.records)} of {len(jobs)} jobs are done; the same run again does the rest"
        )


def _check_alone(directory: Path, found: _Found) -> None:
    """results.h5 and shards by themselves, where there are no whole records to hold them against."""
    if results_path(directory).is_file():
        with found.noting(results_path(directory)):
            results.load(results_path(directory))
    for path in sorted(directory.glob("shards/*.h5")):
        with found.noting(path):
            Shard(path).check()


def _check_job(opened: Run, record: Record) -> str:
    """One job, by its record and its shard; what was checked, in a line."""
    s = record.spectrum
    path = shard_path(opened.directory, s.name)
    if s.partial:
        check_leading(s.values, s.evidence.most_energy)
    else:
        check_values(s.values, s.evidence.energy, s.values.shape)
    if path.is_file():
        shard = opened.shard(s.name)
        shard.check()
        if shard.evidence != s.evidence:
            raise VerificationError(f"{path} has other evidence than the record of {s.name}")
        return f"{s.name}: {shard.layout.count} blocks, checksums, ‖J‖_F², {compared(shard, s)}, ranks agree"
    if not opened.config.forms_jacobian:
        return f"{s.name}: {len(s.values)} leading values, Σσ² ≤ ‖J‖_F², ranks agree (J was never formed)"
    if opened.config.discard_jacobian:
        return f"{s.name}: Σσ² and ‖J‖_F², ranks agree (Jacobian discarded)"
    raise VerificationError(f"{path} is missing")


def _check_gathered(opened: Run) -> None:
    """Raises VerificationError unless results.h5, if there is one, says what the records say; it may lack some."""
    path = results_path(opened.directory)
    if not path.is_file():
        return
    stored, common = results.load(path)
    own = Common(opened.provenance, list(opened.token_ids))
    for record in stored:
        truth = next((r for r in opened.records if r.spectrum.name == record.spectrum.name), None)
        if truth is None or content_hash(record, common) != content_hash(truth, own):
            raise VerificationError(
                f"{path} says otherwise of {record.spectrum.name} than its record; delete it: it is made again from the records"
            )
        results.check_derived(path, record.spectrum)


def compared(shard: Shard, s: Spectrum) -> str:
    """Compares stored values with the shard's, in full where that is cheap; says what was compared."""
    if not isinstance(shard.structure, BlockDiagonal) and max(shard.shape) > SMALL:
        return "Σσ²"
    from tightpass.spectra.exact import singular_values  # brings torch, which checksums do without

    again = singular_values(shard).values
    apart = float(np.abs(again - s.values).max())
    if apart > 2 * tolerance(float(again[0]), max(shard.shape), again.dtype):
        raise VerificationError(f"{s.name}: singular values differ by {apart:.1e} from those of {shard.path}")
    return "every singular value"
