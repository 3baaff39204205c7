"""The main job: a question -> shards, records, results and figures in one directory. The coordinator's side of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from tightpass import doors
from tightpass.errors import InputError
from tightpass.jacobians.checked import build_checked
from tightpass.models.capture import capture
from tightpass.models.given import is_given
from tightpass.models.inputs import Given
from tightpass.models.loading import Model, check_dtype, check_given, choose_device, load_model, loaded
from tightpass.models.options import Options
from tightpass.models.tokens import Tokens, check_ids, tokenize
from tightpass.report.say import say
from tightpass.runs.check import Resolved, check_fits, resolve
from tightpass.runs.directory import (
    is_gathered,
    journal_path,
    record_path,
    refuse_other_question,
    refuse_place,
    refuse_unwritable,
    remove_abandoned_parts,
    results_path,
    whole_records,
    write_question,
)
from tightpass.runs.engine import Workplace, do, has_shard
from tightpass.runs.executors.serial import serial
from tightpass.runs.jobs import Job, blocks_of, identity_of, layers_of
from tightpass.runs.made import provenance_of
from tightpass.runs.opened import Run, open, open_single
from tightpass.runs.prompts import Prompts, directory_of
from tightpass.runs.question import Config
from tightpass.store import journal, records, results
from tightpass.store.lock import exclusive
from tightpass.store.records import Common, Record

Progress = Callable[[str, int, int], None]
"""Called with a job's name, how many are done, and how many there are."""


def run(
    model: Any = "demo",
    progress: Progress | None = None,
    *,
    pixel_values: Any = None,
    input_features: Any = None,
    **options: Any,
) -> Run | Prompts:
    """Computes every block of a question, or what is left of it, and returns the run; of `prompts`, all runs.

    model      as for the command; a loaded Hugging Face model is taken as well, as by `load_model`
    options    the fields of `Config`
    progress   called as jobs start and end
    pixel_values, input_features    of a model that reads images or sounds, as for `block`

    The same question again continues what is unfinished. Raises InputError for a wrong request,
    DoesNotFitError if it does not fit, VerificationError if a result fails its checks.
    """
    if progress is not None and not callable(progress):
        raise InputError(f"progress must be a function of (name, done, total), got {doors.shown(progress)}")
    signal = Given(pixel_values, input_features)
    if isinstance(model, Model):
        raise InputError(
            "run loads the model itself, in the precision that is asked for; give its name, or the Hugging Face model"
        )
    if is_given(model):
        given: Any = check_given(model)
        name = given.config.name_or_path or type(given).__name__
        return answer(Config.of(model=name, **options), progress, given, signal)
    return answer(Config.of(model=model, **options), progress, None, signal)


def answer(
    config: Config,
    progress: Progress | None = None,
    given: torch.nn.Module | None = None,
    signal: Given | None = None,
) -> Run | Prompts:
    """`run` for a config; `given` replaces the loading of a model."""
    asked = resolve(config, given, signal)
    refuse_place(asked.directory)
    refuse_other_question(asked.directory, asked.config)
    check_fits(asked)
    with threads(config.threads):
        model = _model(asked, given)
        _answer(model, asked, progress)
    return open(asked.directory)


def _model(asked: Resolved, given: torch.nn.Module | None) -> Model:
    c = asked.config
    if asked.source is None:
        return load_model(given, c.dtype, c.device)
    return loaded(asked.source, check_dtype(c.dtype), choose_device(c.device), c.weights, c.seed, asked.plan.in_turn)


def _answer(model: Model, asked: Resolved, progress: Progress | None) -> None:
    """All texts of a question."""
    config, directory = asked.config, asked.directory
    if model.shape.noted:
        say(f"{model.name} is not what its configuration says, and is taken as it is: {'; '.join(model.shape.noted)}")
    for note in model.notes:
        say(note)
    if config.prompts is None:
        _compute(model, config, directory, asked.memory, progress, asked.read)
        return
    texts = list(config.prompts)
    _check_prompts(model, texts, config)
    directory.mkdir(parents=True, exist_ok=True)
    with exclusive(directory):
        refuse_other_question(directory, config)  # another run may have come first
        write_question(directory, config)
        for number, text in enumerate(texts, start=1):
            own = config.model_copy(update={"text": text, "prompts": None})
            _compute(model, own, directory_of(directory, number), asked.memory, _counted(progress, number, len(texts)))


def _check_prompts(model: Model, texts: list[str], config: Config) -> None:
    """Raises InputError, naming the prompt, for one that does not have enough tokens."""
    for number, prompt in enumerate(texts, start=1):
        try:
            tokenize(model, config.tokens, prompt, config.special, config.seed)
        except InputError as error:
            shown = prompt if len(prompt) <= 40 else prompt[:37] + "..."
            raise InputError(f"prompt {number} ({shown!r}): {error}") from None


def _counted(progress: Progress | None, number: int, count: int) -> Progress | None:
    """Progress over the jobs of all prompts."""
    if progress is None:
        return None

    def show(name: str, done: int, total: int) -> None:
        progress(f"prompt {number}/{count} {name}", (number - 1) * total + done, count * total)

    return show


def _compute(
    model: Model,
    config: Config,
    directory: Path,
    memory: int,
    progress: Progress | None,
    read: Tokens | None = None,
) -> None:
    """All jobs of one text, or of what was read instead, and the figures."""
    refuse_other_question(directory, config)
    listed = blocks_of(config, model.shape)
    tokens = read or _tokens(model, config)
    if tokens.random:
        say(f"{model.name} gets {tokens.origin}; the numbers are those of no {tokens.subject}")
    place = Workplace(directory, capture(model, tokens.given, layers_of(listed)), tokens)
    build_checked(place.captured, listed[0])  # the load-time checks, before anything is written
    directory.mkdir(parents=True, exist_ok=True)
    with exclusive(directory):
        refuse_other_question(directory, config)  # another run may have come first
        write_question(directory, config)
        remove_abandoned_parts(directory)
        _do_all(_jobs(place, config, listed, memory), place, progress)
        draw_if_possible(open_single(directory))


def _tokens(model: Model, config: Config) -> Tokens:
    """Of a text, or as they were given."""
    if config.token_ids is not None:
        return Tokens(check_ids(model, config.token_ids), "given token ids")
    return tokenize(model, config.tokens, config.text, config.special, config.seed)


def _jobs(place: Workplace, config: Config, listed: list[Options], memory: int) -> list[Job]:
    weights, ids = place.captured.model.weights_hash(), tuple(place.tokens.ids.tolist())
    names, signal = tuple(block.name for block in listed), place.tokens.digest
    return [Job(config, b, names, identity_of(config, b, weights, ids, signal), weights, ids, memory) for b in listed]


def _do_all(jobs: list[Job], place: Workplace, progress: Progress | None) -> None:
    """What is left of the jobs; then, or when interrupted, results.h5 with all that are done."""
    done, common = _done(jobs, place)
    left = [job for job in jobs if not _is_done(job, done, place.directory)]
    before = len(jobs) - len(left)
    if left:
        refuse_unwritable(place.directory)

    def tell(name: str, number: int) -> None:
        if progress is not None:
            progress(name, before + number, len(jobs))

    try:
        tell(left[0].name if left else "", 0)
        for number, job in enumerate(serial(partial(_noted, place=place, done=done), left), start=1):
            entry = done[job.name]
            journal.append(journal_path(place.directory), job=job.name, identity=entry.identity, **entry.seconds)
            tell(left[number].name if number < len(left) else "", number)
    finally:
        finished = [done[job.name] for job in jobs if job.name in done]
        if finished and not is_gathered(place.directory, finished, common):
            results.save(results_path(place.directory), finished, common)


def _noted(job: Job, place: Workplace, done: dict[str, Record]) -> None:
    done[job.name] = do(job, place)


def _done(jobs: list[Job], place: Workplace) -> tuple[dict[str, Record], Common]:
    """The records of jobs that are done, each in a file of its own, and in the journal.

    Raises InputError where they are those of another question.
    """
    directory, wanted = place.directory, {job.name: job.identity for job in jobs}
    common = Common(provenance_of(place.captured.model, place.tokens, jobs[0]), list(jobs[0].token_ids))
    done = whole_records(directory)
    if any(wanted.get(name) != record.identity for name, record in done.items()):
        raise InputError(
            f"{directory} was made from other weights, another text or another version; choose another --out"
        )
    logged = {entry.get("job") for entry in journal.read(journal_path(directory))}
    for name, record in done.items():
        if not record_path(directory, name).is_file():  # of a run of before, which had none
            records.save(record_path(directory, name), record, common)
        if name not in logged:
            journal.append(journal_path(directory), job=name, identity=record.identity, recovered=True)
    return done, common


def _is_done(job: Job, done: dict[str, Record], directory: Path) -> bool:
    """Whether nothing is left to do: a record, and the shard where it is kept."""
    return job.name in done and (not job.question.keeps_jacobian or has_shard(directory, job))


def draw_if_possible(done: Run) -> None:
    """The figures; where they cannot be drawn a line on stderr says so, since the numbers are on disk."""
    try:
        done.plot()
    except Exception as error:  # matplotlib's fonts, styles and caches, or a full disk
        reason = next(iter(str(error).splitlines()), "")
        say(f"figures were not drawn ({type(error).__name__}: {reason}); the numbers are in {done.directory}")


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
