"""The main job: a question -> shards, spectra, ranks, tables and figures in one directory."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from threadpoolctl import threadpool_limits

from tightpass import doors, text
from tightpass.config import Config
from tightpass.errors import InputError, VerificationError
from tightpass.jacobian.checked import build_checked
from tightpass.jacobian.operator import Jacobian
from tightpass.memory import memory_limit
from tightpass.models.blocks import Options
from tightpass.models.capture import Captured, capture
from tightpass.models.loading import Model, check_given, load_model, locate
from tightpass.models.tokens import Tokens, tokenize
from tightpass.plan import check_fits, check_settings, jobs, plan, plan_for
from tightpass.prompts import Prompts, check_prompts, directory_of, texts_of
from tightpass.provenance import made_differently, made_here, provenance_of
from tightpass.rank.evidence import collect
from tightpass.rank.leading import DEFAULT_K, leading_spectrum
from tightpass.rank.verdict import Spectrum, verdict
from tightpass.report import figures, table
from tightpass.report.say import say
from tightpass.spectra.batched import Factors
from tightpass.spectra.exact import singular_values
from tightpass.spectra.verify import SMALL, check_leading, check_values, tolerance
from tightpass.store import journal, results
from tightpass.store.lock import exclusive
from tightpass.store.publish import published
from tightpass.store.results import Record
from tightpass.store.shards import Layout, Shard, write_shard
from tightpass.structure import BlockDiagonal

ALGORITHM = 6
"""Part of every shard's identity: raised when the same question would give other numbers."""

Progress = Callable[[str, int, int], None]
"""Called with a job's name, how many are done, and how many there are."""


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
        return table.frame(self.spectra)

    def values(self) -> pd.DataFrame:
        """One row a singular value: job, index (from 1), value, label, and of MLPs the token that it belongs to."""
        return table.values(self.spectra)

    def plot(self) -> tuple[Path, Path, Path]:
        """Writes ranks.png, spectra.png and curves.png into the directory; returns their paths."""
        return figures.draw(self.spectra, self.title, self.directory)

    def shard(self, name: str) -> Shard:
        """The Jacobian of a job on disk. Raises InputError if there is no such job, or it was discarded."""
        path = shard_path(self.directory, self[name].name)
        if not path.is_file():
            raise InputError(
                f"the Jacobian of {name} was not kept in {self.directory} (discard_jacobian, or method topk)"
            )
        return Shard(path)

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


def run(model: Any = "demo", progress: Progress | None = None, **options: Any) -> Run | Prompts:
    """Computes every block of a question, or what is left of it, and returns the run; of `prompts`, all runs.

    model      as for the command; a loaded Hugging Face model is taken as well
    options    the fields of `Config`
    progress   called as jobs start and end

    The same question again continues what is unfinished. Raises InputError for a wrong request,
    DoesNotFitError if it does not fit, VerificationError if a result fails its checks.
    """
    if progress is not None and not callable(progress):
        raise InputError(f"progress must be a function of (name, done, total), got {doors.shown(progress)}")
    if isinstance(model, torch.nn.Module):
        check_given(model)
        given = getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__
        return answer(Config.of(model=given, **options), progress, model)
    return answer(Config.of(model=model, **options), progress)


def answer(config: Config, progress: Progress | None = None, given: torch.nn.Module | None = None) -> Run | Prompts:
    """`run` for a config; `given` replaces the loading of a model."""
    check_settings(config)
    directory = config.directory()
    resolved: dict[str, Any] = {"text": read_text(config), "text_file": None}
    if config.prompts is not None:
        resolved["prompts"] = texts_of(config)
    if given is None:
        resolved["model"] = locate(config.model).name
    config = config.model_copy(update=resolved)
    refuse_other_question(directory, config)
    planned = plan(config) if given is None else plan_for(config, given.config, config.model)
    check_fits(planned, config, directory)
    with threads(config.threads):
        limit = memory_limit(config.memory)
        model = load_model(given or config.model, config.dtype, config.device, config.weights, config.seed, limit)
        if config.prompts is None:
            _compute(model, config, directory, limit, progress)
            return open(directory)
        texts = list(config.prompts)
        check_prompts(model, texts, config)
        directory.mkdir(parents=True, exist_ok=True)
        write_question(directory / "run.yaml", config)
        for number, text in enumerate(texts, start=1):
            own = config.model_copy(update={"text": text, "prompts": None})
            _compute(model, own, directory_of(directory, number), limit, _counted(progress, number, len(texts)))
    return open(directory)


def _counted(progress: Progress | None, number: int, count: int) -> Progress | None:
    """Progress over the jobs of all prompts."""
    if progress is None:
        return None

    def show(name: str, done: int, total: int) -> None:
        progress(f"prompt {number}/{count} {name}", (number - 1) * total + done, count * total)

    return show


def _compute(model: Model, config: Config, directory: Path, limit: int, progress: Progress | None) -> None:
    """All jobs of one text, and the figures."""
    refuse_other_question(directory, config)
    listed = jobs(config, [model.heads(layer) for layer in range(len(model.layers))])
    tokens = tokenize(model, config.tokens, config.text, config.special, config.seed)
    if tokens.random:
        say(f"{model.name} gets {tokens.origin}; the numbers are those of no text")
    captured = capture(model, tokens.ids)
    build_checked(captured, listed[0])  # the load-time checks, before anything is written
    directory.mkdir(parents=True, exist_ok=True)
    with exclusive(directory):
        refuse_other_question(directory, config)  # another run may have come first
        write_question(directory / "run.yaml", config)
        remove_abandoned_parts(directory)
        _Job(config, directory, captured, tokens, limit).all(listed, progress)
    draw_if_possible(open_single(directory))


def draw_if_possible(done: Run) -> None:
    """The figures; where they cannot be drawn a line on stderr says so, since the numbers are on disk."""
    try:
        done.plot()
    except Exception as error:  # matplotlib's fonts, styles and caches, or a full disk
        reason = next(iter(str(error).splitlines()), "")
        say(f"figures were not drawn ({type(error).__name__}: {reason}); the numbers are in {done.directory}")


def write_question(path: Path, config: Config) -> None:
    """Writes run.yaml, whole or not at all; one that is there already answers to the same question."""
    if path.is_file():
        return
    question = yaml.safe_dump(config.model_dump(exclude={"out"}), sort_keys=False, allow_unicode=True)
    with published(path) as part:
        part.write_text(question, encoding="utf-8", newline="\n")


def remove_abandoned_parts(directory: Path) -> None:
    """Removes what killed writers left; the caller holds the directory's lock, so nobody is writing."""
    for part in [*directory.glob("*.part"), *directory.glob("shards/*.part")]:
        part.unlink(missing_ok=True)


def finished_records(path: Path) -> list[Record]:
    """The records of results.h5; none if it is absent or damaged, since shards can fill it again."""
    try:
        return results.load(path)[0] if path.is_file() else []
    except VerificationError:
        return []


def read_text(config: Config) -> str | None:
    """The text itself. Raises InputError if its file cannot be read."""
    if config.text_file is None:
        return config.text
    if config.text_file == "-":
        return text.decoded(sys.stdin.buffer.read(), "standard input")
    return text.read(config.text_file)


def refuse_other_question(directory: Path, config: Config) -> None:
    """Raises InputError if the directory holds another run, or files that are no run."""
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory} is a file; --out needs a directory")
    if not directory.exists() or not any(directory.iterdir()):
        return
    if not (directory / "run.yaml").is_file():
        raise InputError(f"{directory} is not empty and holds no run; choose another --out")
    before, now = Config.read(str(directory / "run.yaml")).question(), config.question()
    different = [f"{key} {before[key]!r} → {now[key]!r}" for key in now if before[key] != now[key]]
    if different:
        shown = ", ".join(item if len(item) < 60 else item.split(" ", 1)[0] for item in different)
        raise InputError(f"{directory} holds the run of another question ({shown}); choose another --out")


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Limits torch and the BLAS to `count` threads; None leaves them as they are."""
    if count is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)


def shard_path(directory: Path, name: str) -> Path:
    return directory / "shards" / f"{name}.h5"


@dataclass
class _Job:
    """The jobs of one run: forms, stores, decomposes, judges and records each."""

    config: Config
    directory: Path
    captured: Captured
    tokens: Tokens
    memory: int

    def all(self, listed: list[Options], progress: Progress | None) -> None:
        path, ids = self.directory / "results.h5", self.tokens.ids.tolist()
        weights = self.captured.model.weights_hash()
        names = [options.name for options in listed]
        provenance = {"jobs": names, **provenance_of(self.captured.model, self.tokens, weights)}
        wanted = {options.name: self.identity(options, weights) for options in listed}
        done = {record.spectrum.name: record for record in finished_records(path)}
        if any(wanted[name] != record.identity for name, record in done.items()):
            raise InputError(
                f"{self.directory} was made from other weights, another text or another version; choose another --out"
            )
        log = self.directory / "journal.jsonl"
        logged = {entry.get("job") for entry in journal.read(log)}
        for name in done.keys() - logged:
            journal.append(log, job=name, identity=wanted[name], recovered=True)
        for number, options in enumerate(listed):
            name = options.name
            if progress is not None:
                progress(name, number, len(listed))
            if name in done and (not self.config.keeps_jacobian or self.has_shard(name, wanted[name])):
                continue
            done[name] = self.one(options, wanted[name])
            ordered = [done[o.name] for o in listed if o.name in done]
            results.save(path, ordered, provenance, ids)
            journal.append(log, job=name, identity=wanted[name], **done[name].seconds)
        if progress is not None:
            progress("", len(listed), len(listed))

    def identity(self, options: Options, weights: str) -> str:
        """A hash of all that defines a job's numbers, not of where or by whom it is run."""
        defining = {
            "weights": weights,
            "token_ids": self.tokens.ids.tolist(),
            "block": [options.kind, options.layer, options.head, options.norm, options.residual],
            "dtype": self.config.dtype,
            "vectors": self.config.vectors,
            "algorithm": ALGORITHM,
        }
        if not self.config.forms_jacobian:
            defining |= {"method": self.config.method, "k": self.config.k or DEFAULT_K}
        return hashlib.sha256(json.dumps(defining, sort_keys=True).encode()).hexdigest()

    def has_shard(self, name: str, identity: str) -> bool:
        """Whether the job's shard is there and whole enough to open; an unreadable one is made again.

        Raises InputError for a shard of other weights, another text or another version: shards never change.
        """
        path = shard_path(self.directory, name)
        if not path.is_file():
            return False
        try:
            shard = Shard(path)
        except VerificationError:
            return False
        if shard.identity != identity:
            raise InputError(
                f"{path} was made from other weights, another text or another version; choose another --out"
            )
        return True

    def one(self, options: Options, identity: str) -> Record:
        """One job, from its published shard where there is one."""
        path = shard_path(self.directory, options.name)
        seconds: dict[str, float] = {}
        made = made_here(str(self.captured.model.device))
        if not self.config.forms_jacobian:
            with timed(seconds, "block"):
                J = self.jacobian(options)
            with timed(seconds, "spectrum"):
                found = leading_spectrum(J, self.config.k or DEFAULT_K, self.config.vectors)
            return Record(identity, found, seconds, made)
        if self.has_shard(options.name, identity):
            shard = Shard(path)
            factors = self.jacobian(options).factors if options.kind == "mlp" else None
            made["jacobian"] = "from its shard, which was there already"
            return Record(identity, self.judged(shard, seconds, options, factors), seconds, made)
        with timed(seconds, "block"):
            J = self.jacobian(options)
        with timed(seconds, "jacobian, floor and storage"):
            layout = Layout(J.structure, J.tokens_out, J.tokens_in, J.d_out, J.d_in, self.config.dtype)
            x = J.x.cpu().numpy()
            writer = write_shard(path, layout, identity, x, lambda part: collect(J, part.write, part.panels).as_dict())
        try:
            if not self.config.discard_jacobian:
                with timed(seconds, "publishing"):
                    shard = writer.publish()
            else:
                shard = Shard(writer.part)
            return Record(identity, self.judged(shard, seconds, options, J.factors), seconds, made)
        finally:
            writer.discard()

    def jacobian(self, options: Options) -> Jacobian:
        block = build_checked(self.captured, options)
        return Jacobian(block.function(), block.x, block.structure, block=block, memory=self.memory)

    def judged(self, shard: Shard, seconds: dict[str, float], options: Options, factors: Factors | None) -> Spectrum:
        with timed(seconds, "spectrum"):
            return verdict(
                shard, shard.evidence, options.name, len(self.tokens.ids), self.config.vectors, factors, self.memory
            )


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start


def open(directory: str | Path) -> Run | Prompts:
    """Opens the directory of a run, or of the runs of several prompts.

    Raises InputError if it is none, or has no finished job yet.
    """
    path = doors.path("the run's directory", directory)
    config = _config_of(path)
    if config.prompts is None:
        return open_single(path)
    texts = texts_of(config)
    places = [directory_of(path, number) for number in range(1, len(texts) + 1)]
    done = tuple(open_single(place) for place in places if (place / "results.h5").is_file())
    if not done:
        raise _nothing_finished(path)
    return Prompts(path, config, tuple(texts), done)


def open_single(path: Path) -> Run:
    """Opens the directory of a run. Raises as `open` does."""
    config = _config_of(path)
    if not (path / "results.h5").is_file():
        raise _nothing_finished(path)
    records, provenance, token_ids = results.load(path / "results.h5")
    return Run(path, config, tuple(records), provenance, tuple(token_ids))


def _config_of(path: Path) -> Config:
    if not (path / "run.yaml").is_file():
        raise InputError(
            f"{path} is not a run directory (no run.yaml); give the directory that `tightpass run` printed"
        )
    return Config.read(str(path / "run.yaml"), out=str(path))


def _nothing_finished(path: Path) -> InputError:
    return InputError(f"{path} has no finished job yet; run `tightpass run --config {path / 'run.yaml'} --out {path}`")


def verify(directory: str | Path) -> list[str]:
    """Checks a run's files against each other; returns what was checked, a line a job.

    Every chunk of every shard against its checksum, every block present, ‖J‖_F² as recorded and equal
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
    lines = []
    for record in opened.records:
        s = record.spectrum
        path = shard_path(opened.directory, s.name)
        if s.partial:
            check_leading(s.values, s.evidence.most_energy)
        else:
            check_values(s.values, s.evidence.energy, s.values.shape)
        results.check_derived(opened.directory / "results.h5", s)
        if path.is_file():
            shard = Shard(path)
            if shard.identity != record.identity:
                raise VerificationError(f"{path} belongs to another computation than results.h5")
            shard.check()
            if shard.evidence != s.evidence:
                raise VerificationError(f"{path} records other evidence than results.h5")
            lines.append(f"{s.name}: {shard.layout.count} blocks, checksums, ‖J‖_F², {compared(shard, s)}, ranks agree")
        elif not opened.config.forms_jacobian:
            lines.append(f"{s.name}: {len(s.values)} leading values, Σσ² ≤ ‖J‖_F², ranks agree (J was never formed)")
        elif opened.config.discard_jacobian:
            lines.append(f"{s.name}: Σσ² and ‖J‖_F², ranks agree (Jacobian discarded)")
        else:
            raise VerificationError(f"{path} is missing")
    return lines


def compared(shard: Shard, s: Spectrum) -> str:
    """Compares stored values with the shard's, in full where that is cheap; says what was compared."""
    if not isinstance(shard.structure, BlockDiagonal) and max(shard.shape) > SMALL:
        return "Σσ²"
    again = singular_values(shard).values
    apart = float(np.abs(again - s.values).max())
    if apart > 2 * tolerance(float(again[0]), max(shard.shape), again.dtype):
        raise VerificationError(f"{s.name}: singular values differ by {apart:.1e} from those of {shard.path}")
    return "every singular value"
