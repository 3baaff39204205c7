"""A run's directory: what lies where, and who may write to it."""

from __future__ import annotations

from pathlib import Path

import yaml

from tightpass.errors import InputError, VerificationError
from tightpass.runs.question import Config
from tightpass.store import records, results
from tightpass.store.publish import published
from tightpass.store.records import Common, Record


def question_path(directory: Path) -> Path:
    return directory / "run.yaml"


def results_path(directory: Path) -> Path:
    return directory / "results.h5"


def record_path(directory: Path, name: str) -> Path:
    return directory / "records" / f"{name}.h5"


def shard_path(directory: Path, name: str) -> Path:
    return directory / "shards" / f"{name}.h5"


def journal_path(directory: Path) -> Path:
    return directory / "journal.jsonl"


def is_begun(directory: Path) -> bool:
    """Whether some job is finished there."""
    return results_path(directory).is_file() or any(directory.glob("records/*.h5"))


def known(directory: Path) -> tuple[list[Record], Common]:
    """All finished jobs in listed order: of results.h5, and of records that it does not have yet.

    Raises VerificationError for a damaged file, InputError where no job is finished.
    """
    path = results_path(directory)
    found, common = results.load(path) if path.is_file() else ([], None)
    by_name = {record.spectrum.name: record for record in found}
    for part in sorted(directory.glob("records/*.h5")):
        if part.stem not in by_name:
            record, common = records.load(part)
            by_name[part.stem] = record
    if common is None:
        raise nothing_finished(directory)
    listed = [by_name[name] for name in common.provenance["jobs"] if name in by_name]
    return listed, common


def gathered(directory: Path) -> list[str]:
    """Names of the jobs that results.h5 has; none where it is absent or damaged."""
    try:
        return [record.spectrum.name for record in results.load(results_path(directory))[0]]
    except (InputError, VerificationError):
        return []


def whole_records(directory: Path) -> dict[str, Record]:
    """The finished jobs by name, from whatever file is whole: a damaged one is as good as none, since shards can fill it
    again."""
    found: dict[str, Record] = {}
    try:
        if results_path(directory).is_file():
            found = {record.spectrum.name: record for record in results.load(results_path(directory))[0]}
    except VerificationError:
        pass
    for part in directory.glob("records/*.h5"):
        try:
            found[part.stem] = records.load(part)[0]
        except VerificationError:
            found.pop(part.stem, None)
    return found


def config_of(directory: Path) -> Config:
    """The question that a directory answers. Raises InputError where there is none."""
    path = question_path(directory)
    if not path.is_file():
        raise InputError(
            f"{directory} is not a run directory (no run.yaml); give the directory that `tightpass run` printed"
        )
    return Config.read(str(path), out=str(directory))


def nothing_finished(directory: Path) -> InputError:
    question = question_path(directory)
    return InputError(f"{directory} has no finished job yet; run `tightpass run --config {question} --out {directory}`")


def write_question(directory: Path, config: Config) -> None:
    """Writes run.yaml, whole or not at all; one that is there already answers to the same question."""
    path = question_path(directory)
    if path.is_file():
        return
    question = yaml.safe_dump(config.model_dump(exclude={"out"}), sort_keys=False, allow_unicode=True)
    with published(path) as part:
        part.write_text(question, encoding="utf-8", newline="\n")


def remove_abandoned_parts(directory: Path) -> None:
    """Removes what killed writers left; the caller holds the directory's lock, so nobody is writing."""
    for pattern in ("*.part", "shards/*.part", "records/*.part"):
        for part in directory.glob(pattern):
            part.unlink(missing_ok=True)


def refuse_other_question(directory: Path, config: Config) -> None:
    """Raises InputError if the directory holds another run, or files that are no run."""
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory} is a file; --out needs a directory")
    if not directory.exists() or not any(directory.iterdir()):
        return
    if not (question_path(directory)).is_file():
        raise InputError(f"{directory} is not empty and holds no run; choose another --out")
    before, now = Config.read(str(question_path(directory))).question(), config.question()
    different = [f"{key} {before[key]!r} → {now[key]!r}" for key in now if before[key] != now[key]]
    if different:
        shown = ", ".join(item if len(item) < 60 else item.split(" ", 1)[0] for item in different)
        raise InputError(f"{directory} holds the run of another question ({shown}); choose another --out")
