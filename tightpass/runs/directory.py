"""A run's directory: what lies where, and who may write to it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from tightpass.errors import InputError, VerificationError
from tightpass.runs.question import Config
from tightpass.store import records, results
from tightpass.store.publish import published
from tightpass.store.records import Common, Record, content_hash


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
    """All finished jobs in listed order, and what they share: by their records, which are the truth; by results.h5 those that
    have none, as in runs of before.

    Raises VerificationError for a damaged file and for files of two runs, InputError where no job is finished.
    """
    loaded = {path: record_at(path) for path in sorted(directory.glob("records/*.h5"))}
    found = {path.stem: record for path, (record, _) in loaded.items()}
    shared = {path: common for path, (_, common) in loaded.items()}
    listed = next(iter(shared.values())).provenance["jobs"] if shared else None
    path = results_path(directory)
    if path.is_file() and (listed is None or any(name not in found for name in listed)):
        gathered, shared[path] = results.load(path)
        found = {record.spectrum.name: record for record in gathered} | found
    if not shared:
        raise nothing_finished(directory)
    (first, common), *others = shared.items()
    for other, own in others:
        if own != common:
            raise VerificationError(
                f"{other} and {first} are of two runs (other weights, tokens or blocks); delete the one that does not belong there"
            )
    return [found[name] for name in common.provenance["jobs"] if name in found], common


def record_at(path: Path) -> tuple[Record, Common]:
    """A record. Raises VerificationError for a damaged one, and for that of a job of another name."""
    record, common = records.load(path)
    if record.spectrum.name != path.stem:
        raise VerificationError(f"{path} holds the record of {record.spectrum.name}; {records.REMEDY}")
    return record, common


def is_gathered(directory: Path, finished: list[Record], common: Common) -> bool:
    """Whether results.h5 holds these records, in this order, and nothing else."""
    try:
        stored, shared = results.load(results_path(directory))
    except (InputError, VerificationError):
        return False
    return [content_hash(record, shared) for record in stored] == [content_hash(record, common) for record in finished]


def whole_records(directory: Path) -> dict[str, Record]:
    """The finished jobs by name, as `known` has them; but a damaged file is as good as none, since shards can fill it again."""
    found: dict[str, Record] = {}
    with suppress(VerificationError):
        if results_path(directory).is_file():
            found = {record.spectrum.name: record for record in results.load(results_path(directory))[0]}
    for path in directory.glob("records/*.h5"):
        try:
            found[path.stem] = record_at(path)[0]
        except VerificationError:
            found.pop(path.stem, None)
    return found


def check_answers(directory: Path, config: Config, finished: list[Record], common: Common) -> None:
    """Raises VerificationError where the records answer another question than run.yaml asks."""
    dtypes = {record.spectrum.values.dtype.name for record in finished}
    stored: dict[str, set[Any]] = {
        "block": {_kind_of(name) for name in common.provenance["jobs"]},
        "dtype": dtypes,
        "tokens": {len(common.token_ids)},
    }
    for option, found in stored.items():
        if found != {getattr(config, option)}:
            raise VerificationError(
                f"{question_path(directory)} asks for {option} {getattr(config, option)}, the records beside it have "
                f"{', '.join(map(str, sorted(found)))}: they are of two runs; put the right run.yaml there, or run again elsewhere"
            )


def _kind_of(name: str) -> str:
    """The kind of a job's block, from its name, such as L03.H07."""
    last = name.rpartition(".")[2]
    return "head" if last.startswith("H") else last


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


def existing_part(directory: Path) -> Path:
    """The directory, or the nearest one above it that is there; a file, where that is in its place."""
    return next(place for place in [directory, *directory.absolute().parents] if place.exists())


def refuse_place(directory: Path) -> None:
    """Raises InputError where no new run can be written. One that is there may be finished, and then nothing has to be."""
    place = existing_part(directory)
    if not place.is_dir():
        raise InputError(f"{place} is a file; --out needs a directory")
    if not question_path(directory).is_file():
        refuse_unwritable(place)


def refuse_unwritable(place: Path) -> None:
    """Raises InputError for a directory that this process may not write to."""
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{place} cannot be written to: permission denied; choose another --out")


def refuse_other_question(directory: Path, config: Config) -> None:
    """Raises InputError if the directory holds another run, or files that are no run."""
    if not directory.exists() or all(_is_left_of_question(path) for path in directory.iterdir()):
        return
    if not (question_path(directory)).is_file():
        raise InputError(f"{directory} is not empty and holds no run; choose another --out")
    before, now = Config.read(str(question_path(directory))).question(), config.question()
    different = [f"{key} {before[key]!r} → {now[key]!r}" for key in now if before[key] != now[key]]
    if different:
        shown = ", ".join(item if len(item) < 60 else item.split(" ", 1)[0] for item in different)
        raise InputError(f"{directory} holds the run of another question ({shown}); choose another --out")


def _is_left_of_question(path: Path) -> bool:
    """Whether a file is what a writer of run.yaml left that was killed, before there was anything else."""
    return path.name.startswith("run.yaml.") and path.name.endswith(".part")
