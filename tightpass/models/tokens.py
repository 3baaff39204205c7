"""Text -> token ids, and the bundled text."""

from __future__ import annotations

import hashlib
import reprlib
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol

import torch

from tightpass.errors import InputError
from tightpass.text import check

TOKENS = 64
"""Of the bundled text, of drawn ids and of each of several prompts, where no number is given."""
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True)
class Tokens:
    """Token ids (T,) and where they come from, in words for the output.

    signal    what a model reads that reads no text (`signal.Signal`); the ids are those of no word then
    subject   what the tokens are of
    """

    ids: torch.Tensor
    origin: str
    random: bool = False
    signal: torch.Tensor | None = None
    subject: str = "text"

    @property
    def given(self) -> torch.Tensor:
        """What the model is run on."""
        return self.ids if self.signal is None else self.signal

    @property
    def digest(self) -> str | None:
        """A hash of the signal, if there is one."""
        if self.signal is None:
            return None
        values = self.signal.detach().cpu().double().contiguous().numpy()
        return hashlib.sha256(f"{values.shape}".encode() + values.tobytes()).hexdigest()


class Reader(Protocol):
    """What reads a text: a model, its positions (None for no limit), token ids below `vocabulary`, and its tokenizer."""

    @property
    def name(self) -> str: ...
    @property
    def positions(self) -> int | None: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def tokenizer(self) -> Any | None: ...


def bundled_text() -> str:
    """The text that is used where none is given."""
    return resources.files("tightpass.models").joinpath("text.txt").read_text(encoding="utf-8")


def usual(positions: int | None) -> int:
    """How many tokens of a text are taken where nobody says."""
    return TOKENS if positions is None else min(TOKENS, positions)


def check_count(tokens: int, limit: int | None, name: str) -> None:
    """Raises InputError unless 1 <= tokens <= limit; None is no limit."""
    if tokens < 1:
        raise InputError(f"tokens must be at least 1, got {tokens}")
    if limit is not None and tokens > limit:
        raise InputError(f"{name} has {limit} positions, {tokens} tokens were asked for; use at most {limit}")


def own_length(name: str, tokenizer: Any | None, positions: int | None, text: str, special: bool = True) -> int:
    """How many tokens a text has, or there are positions for, whichever is less.

    Raises InputError for an empty text, and without a tokenizer.
    """
    check(text, "text")
    if not text.strip():
        raise InputError("the text is empty; give some words, or leave it out for the bundled text")
    if tokenizer is None:
        raise InputError(f"{name} has no tokenizer at hand, so a text cannot be used; leave it out for seeded ids")
    found = len(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
    return found if positions is None else min(found, positions)


def tokenize(
    model: Reader, tokens: int | None = None, text: str | None = None, special: bool = True, seed: int = 0
) -> Tokens:
    """The first `tokens` ids of `text` (bundled text if None), special tokens counted; all of a given text, if left out.

    Without a tokenizer the ids are drawn with `seed`, unless a text was asked for.
    Raises InputError for an empty or too short text, and for a count that does not fit.
    """
    if tokens is not None:
        check_count(tokens, model.positions, model.name)
    own = None if text is None else own_length(model.name, model.tokenizer, model.positions, text, special)
    tokens = (usual(model.positions) if own is None else own) if tokens is None else tokens
    check_count(tokens, model.positions, model.name)
    if model.tokenizer is None:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(model.vocabulary, (tokens,), generator=generator)
        return Tokens(ids, f"random token ids (seed {seed}): no tokenizer at hand", random=True)
    origin = "bundled text" if text is None else "given text"
    source = bundled_text() if text is None else text
    available = len(model.tokenizer(source, add_special_tokens=special, verbose=False)["input_ids"])
    if available == 0:
        raise InputError(
            f"the tokenizer of {model.name} finds no token in the {origin}: files of it are missing; fetch them, or give token_ids"
        )
    if available < tokens:
        raise InputError(
            f"the {origin} has {available} tokens, {tokens} were asked for; give a longer text or --tokens {available}"
        )
    ids = model.tokenizer(source, add_special_tokens=special, truncation=True, max_length=tokens, verbose=False)[
        "input_ids"
    ]
    if len(ids) != tokens:
        raise InputError(
            f"the tokenizer of {model.name} cannot cut the {origin} to {tokens} tokens, it gives {len(ids)}: "
            "special tokens count; ask for more tokens, or for none that are special (special=False, --no-special)"
        )
    if min(ids) < 0 or max(ids) >= model.vocabulary:
        raise InputError(
            f"the tokenizer of {model.name} gives ids up to {max(ids)}, the model has 0..{model.vocabulary - 1}: "
            "it belongs to another model"
        )
    return Tokens(torch.tensor(ids), origin)


def check_ids(model: Reader, token_ids: Any) -> torch.Tensor:
    """Given ids as a tensor. Raises InputError for ids the model does not have."""
    try:
        ids = torch.as_tensor(list(token_ids))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(f"token_ids must be a list of integers, got {reprlib.repr(token_ids)}") from None
    if ids.numel() and (ids.ndim != 1 or ids.dtype not in INTEGERS):
        raise InputError(f"token_ids must be a list of integers, got shape {tuple(ids.shape)}, {ids.dtype}")
    check_count(len(ids), model.positions, model.name)
    if int(ids.min()) < 0 or int(ids.max()) >= model.vocabulary:
        raise InputError(f"token ids must lie in 0..{model.vocabulary - 1}, got {int(ids.min())}..{int(ids.max())}")
    return ids.long()
