"""Do a run's files fit together?"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tightpass.confidence import tolerance
from tightpass.errors import VerificationError
from tightpass.rank.spectrum import Spectrum
from tightpass.runs.directory import results_path, shard_path
from tightpass.runs.opened import Run, open
from tightpass.spectra.verify import SMALL, check_leading, check_values
from tightpass.store import results
from tightpass.store.records import Common, content_hash
from tightpass.store.shards import Shard
from tightpass.structure import BlockDiagonal


def verify(directory: str | Path) -> list[str]:
    """Checks a run's files against each other; returns what was checked, a line a job.

    Every record against its hash; results.h5, where it is there, against the records; every chunk of every shard against its checksum, every block present, ‖J‖_F² as recorded and equal
    to Σσ², the stored labels and ranks against those that follow from values and floor; and, where that
    is cheap (block-diagonal, or up to 1024 rows), the singular values computed again. Raises VerificationError
    at the first contradiction.
    """
    opened = open(directory)
    if isinstance(opened, Run):
        return _verify_single(opened)
    if opened.unfinished:
        raise VerificationError(
            f"{opened.unfinished} of {len(opened.texts)} prompts are not done; the same run again does the rest"
        )
    return [f"{run.directory.name} {line}" for run in opened.runs for line in _verify_single(run)]


def _verify_single(opened: Run) -> list[str]:
    if opened.unfinished:
        raise VerificationError(
            f"{len(opened.records)} of {len(opened.provenance['jobs'])} jobs are done; the same run again does the rest"
        )
    _check_gathered(opened)
    lines = []
    for record in opened.records:
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
            lines.append(f"{s.name}: {shard.layout.count} blocks, checksums, ‖J‖_F², {compared(shard, s)}, ranks agree")
        elif not opened.config.forms_jacobian:
            lines.append(f"{s.name}: {len(s.values)} leading values, Σσ² ≤ ‖J‖_F², ranks agree (J was never formed)")
        elif opened.config.discard_jacobian:
            lines.append(f"{s.name}: Σσ² and ‖J‖_F², ranks agree (Jacobian discarded)")
        else:
            raise VerificationError(f"{path} is missing")
    return lines


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
