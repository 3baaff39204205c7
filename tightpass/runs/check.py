"""Every refusal of a question, once, before anything is loaded or written."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tightpass import text
from tightpass.errors import DoesNotFitError, InputError
from tightpass.evidence.judge import check_count_of_values, check_k, check_method
from tightpass.memory import memory_limit
from tightpass.models.inputs import Given, check_tokens, read_input, refuse_text
from tightpass.models.loading import (
    WEIGHTS,
    Source,
    check_dtype,
    choose_device,
    locate,
    planned_shape,
    tokenizer_given,
    tokenizer_of,
)
from tightpass.models.shape import Shape, shape_of
from tightpass.models.tokens import Tokens, check_count, own_length, usual
from tightpass.runs.directory import existing_part
from tightpass.runs.jobs import blocks_of
from tightpass.runs.plan import Plan, plan_for
from tightpass.runs.prompts import texts_of
from tightpass.runs.question import Config
from tightpass.structure import BlockDiagonal
from tightpass.units import format_bytes

THREADS = 4096


@dataclass(frozen=True)
class Resolved:
    """A question that can be answered: its text read, its model found, and what it takes.

    source   where the model's files are; None for a model that was given
    memory   bytes to stay within
    read     the input of a model that reads no text
    """

    config: Config
    source: Source | None
    shape: Shape
    plan: Plan
    memory: int
    directory: Path
    read: Tokens | None = None


def resolve(config: Config, given: Any = None, signal: Given | None = None) -> Resolved:
    """What a question asks for, or its refusal. Reads the model's configuration, never its weights.

    given    a loaded model, whose own modules say what there is
    signal   pixels or features, for a model that reads no text

    Raises InputError for what cannot be answered as asked; whether it fits is `check_fits`'s to say.
    """
    check_settings(config)
    resolved: dict[str, Any] = {"text": read_text(config), "text_file": None}
    if config.prompts is not None:
        resolved["prompts"] = texts_of(config)
    source = None if given is not None else locate(config.model)
    if source is not None:
        resolved["model"] = source.name
    config = config.model_copy(update=resolved)
    shape = shape_of(given.base_model) if source is None else planned_shape(source)
    location = source.location if source is not None else str(given.config.name_or_path or "") or None
    read = read_signal(config, shape, signal or Given(), location)
    if read is None:
        config = config.model_copy(update={"tokens": _count(config, source, given, shape)})
        check_count(config.length, shape.positions, config.model)
    else:
        config = config.model_copy(update={"tokens": len(read.ids)})
    listed = blocks_of(config, shape)
    limit = memory_limit(config.memory)
    planned = plan_for(config, shape, listed, limit, source)
    check_count_of_values(planned.shape, config.k, config.vectors)
    return Resolved(config, source, shape, planned, limit, config.directory(), read)


def _count(config: Config, source: Source | None, given: Any, shape: Shape) -> int:
    """How many tokens the model is given: as many as are asked for, or ids are given, or a given text has."""
    if config.token_ids is not None:
        count = len(config.token_ids)
        if config.tokens not in (None, count):
            raise InputError(f"token_ids has {count} ids, {config.tokens} tokens were asked for; leave tokens out")
        return count
    if config.tokens is not None:
        return config.tokens
    if config.text is None:
        return usual(shape.positions)
    tokenizer = tokenizer_given(given) if source is None else tokenizer_of(source, offline=config.weights == "random")
    return own_length(config.model, tokenizer, shape.positions, config.text, config.special)


def read_signal(config: Config, shape: Shape, signal: Given, location: str | None) -> Tokens | None:
    """The input of a model that reads no text; None for one that reads text. Raises InputError for what it does not read."""
    read = read_input(shape, replace(signal, image=config.image), config.model, config.seed, location)
    if read is not None:
        assert shape.reads is not None
        refuse_text(shape.reads, config.model, text=config.text, prompts=config.prompts, token_ids=config.token_ids)
        check_tokens(config.tokens, read, config.model)
    return read


def resolve_for_plan(config: Config) -> Resolved:
    """Likewise, for a question that will not be answered now: standard input is read once, by `run`."""
    return resolve(config.model_copy(update={"text_file": None}) if config.text_file == "-" else config)


def plan(model: str = "demo", **options: Any) -> Plan:
    """What `run` would do with the same options, and its FLOPs, bytes on disk and peak memory. Reads the model's configuration,
    never its weights. Raises InputError for a wrong request."""
    return resolve_for_plan(Config.of(model=model, **options)).plan


def read_text(config: Config) -> str | None:
    """The text itself. Raises InputError if its file cannot be read."""
    if config.text_file is None:
        return config.text
    if config.text_file == "-":
        return text.decoded(sys.stdin.buffer.read(), "standard input")
    return text.read(config.text_file)


def check_settings(config: Config) -> None:
    """Raises InputError for options that are wrong whatever the model."""
    check_dtype(config.dtype)
    check_method(config.method)
    check_k(config.method, config.k, config.vectors)
    choose_device(config.device)
    if config.tokens is not None and config.tokens < 1:
        raise InputError(f"tokens must be at least 1, got {config.tokens}")
    if config.weights not in WEIGHTS:
        raise InputError(f"weights must be one of {', '.join(WEIGHTS)}, got {config.weights!r}")
    if config.vectors < 0:
        raise InputError(f"vectors must be at least 0, got {config.vectors}")
    if config.threads is not None and config.threads < 1:
        raise InputError(f"threads must be at least 1, got {config.threads}")
    if config.threads is not None and config.threads > THREADS:
        raise InputError(f"threads must be at most {THREADS}, got {config.threads}")
    if config.text is not None and config.text_file is not None:
        raise InputError("give --text or --text-file, not both")
    if config.token_ids is not None and any(
        other is not None for other in (config.text, config.text_file, config.prompts)
    ):
        raise InputError("give token_ids or a text, not both")
    if config.prompts is not None and (config.text is not None or config.text_file is not None):
        raise InputError("give --prompts or a text, not both")


def check_fits(asked: Resolved) -> None:
    """Raises DoesNotFitError, with the plan and what would fit, if memory or disk is too small."""
    planned, config, directory, limit = asked.plan, asked.config, asked.directory, asked.memory
    if planned.memory > limit:
        smallest = -(-planned.memory // 2**20)
        alone = planned.loaded > limit
        raise DoesNotFitError(
            f"{len(planned.jobs)} jobs, {planned.jobs[0]} to {planned.jobs[-1]}, each {planned.shape[0]} × {planned.shape[1]} ({planned.route}), need "
            f"{format_bytes(planned.memory)} of memory, {format_bytes(limit)} are allowed.\n"
            f"The smallest that fits: --memory {smallest}MiB; "
            + (
                f"the process and its model alone take {format_bytes(planned.loaded)}"
                if alone
                else "fewer --tokens need less"
            )
            + (
                ""
                if alone or planned.structure == BlockDiagonal().name or not config.forms_jacobian
                else ", and so does --method topk"
            )
        )
    existing = existing_part(directory)
    free = shutil.disk_usage(existing).free
    if planned.disk > free:
        raise DoesNotFitError(
            f"the Jacobians take {format_bytes(planned.disk)} on disk, {format_bytes(free)} are free in {existing}.\n"
            "Use --discard-jacobian, fewer --layers or --tokens, or another --out"
        )
