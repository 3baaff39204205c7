"""Text -> token ids, and the bundled text."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import torch

from tightpass.errors import InputError
from tightpass.models.loading import Model


@dataclass(frozen=True)
class Tokens:
    """Token ids (T,) and where they come from, in words for the output."""

    ids: torch.Tensor
    origin: str


def bundled_text() -> str:
    """The text that is used where none is given."""
    return resources.files("tightpass.models").joinpath("text.txt").read_text(encoding="utf-8")


def positions(model: Model) -> int:
    """The most tokens the model has positions for."""
    return int(model.config.max_position_embeddings)


def check_count(tokens: int, limit: int, name: str) -> None:
    """Raises InputError unless 1 <= tokens <= limit."""
    if tokens < 1:
        raise InputError(f"tokens must be at least 1, got {tokens}")
    if tokens > limit:
        raise InputError(f"{name} has {limit} positions, {tokens} tokens were asked for; use at most {limit}")


def tokenize(model: Model, tokens: int, text: str | None = None, special: bool = True, seed: int = 0) -> Tokens:
    """The first `tokens` ids of `text` (bundled text if None), special tokens counted.

    Without a tokenizer the ids are drawn with `seed`, unless a text was asked for.
    Raises InputError for an empty or too short text, and for a count that does not fit.
    """
    check_count(tokens, positions(model), model.name)
    if text is not None and not text.strip():
        raise InputError("the text is empty; give some words, or leave it out for the bundled text")
    if model.tokenizer is None:
        if text is not None:
            raise InputError(
                f"{model.name} has no tokenizer at hand, so a text cannot be used; leave it out for seeded ids"
            )
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(model.config.vocab_size, (tokens,), generator=generator)
        return Tokens(ids, f"random token ids (seed {seed}): no tokenizer at hand")
    origin = "bundled text" if text is None else "given text"
    source = bundled_text() if text is None else text
    available = len(model.tokenizer(source, add_special_tokens=special, verbose=False)["input_ids"])
    if available < tokens:
        raise InputError(
            f"the {origin} has {available} tokens, {tokens} were asked for; give a longer text or --tokens {available}"
        )
    ids = model.tokenizer(source, add_special_tokens=special, truncation=True, max_length=tokens, verbose=False)[
        "input_ids"
    ]
    return Tokens(torch.tensor(ids), origin)


def check_ids(model: Model, token_ids: list[int]) -> torch.Tensor:
    """Given ids as a tensor. Raises InputError for ids the model does not have."""
    check_count(len(token_ids), positions(model), model.name)
    ids = torch.as_tensor(token_ids)
    if ids.ndim != 1 or ids.is_floating_point():
        raise InputError(f"token_ids must be a list of integers, got shape {tuple(ids.shape)}, {ids.dtype}")
    vocabulary = int(model.config.vocab_size)
    if int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
        raise InputError(f"token ids must lie in 0..{vocabulary - 1}, got {int(ids.min())}..{int(ids.max())}")
    return ids
