"""Checks of a Jacobian with random vectors: a claimed structure must not leak, written blocks must multiply as J does."""

from __future__ import annotations

import math

import torch

from tightpass.errors import InputError, VerificationError
from tightpass.jacobians.autodiff import Linearisation
from tightpass.structure import BlockDiagonal, Structure

LEAK = 4
"""Rounding units of what an output token receives that may come from where nothing may; the floor allows for as much."""


def check_structure(whole: Linearisation, structure: Structure, most: int | None = None) -> None:
    """Raises VerificationError if an output token depends on an input token that it must not.

    Random cotangents are pulled back; each may reach only the tokens of its own row. Every pair of tokens is told apart:
    where block-diagonal by 2⌈log₂ T⌉ groups of tokens; else by every output token alone, since a group hides what its
    later tokens may receive.

    most   look at this many output tokens only, for products that are dear and known by another route as well
    """
    if isinstance(structure, BlockDiagonal):
        _check_groups(whole, structure)
        return
    tokens = whole.y.shape[0]
    count = tokens if most is None else min(most, tokens)
    chosen = sorted({round(i * (tokens - 1) / max(count - 1, 1)) for i in range(count)})
    random, unit = _random_like(whole.y), LEAK * torch.finfo(whole.y.dtype).eps
    for start in range(0, len(chosen), whole.columns):
        part = chosen[start : start + whole.columns]
        cotangents = whole.y.new_zeros(len(part), *whole.y.shape)
        cotangents[range(len(part)), part] = random[part]
        pulled = _received(whole, cotangents)
        for t, received in zip(part, pulled, strict=True):
            allowed = structure.row(t, tokens)
            outside = torch.arange(tokens) >= allowed.stop
            _refuse_leak(received, outside, unit * float(received.norm()), structure, f"token {t}")


def _check_groups(whole: Linearisation, structure: Structure) -> None:
    """Tokens whose number has bit b set, or not, reach only each other: two tokens differ in some bit.

    Every output token is scaled to receive 1, so that a small one's leak does not hide behind a large one.
    """
    tokens = whole.y.shape[0]
    if tokens == 1:
        return
    random, unit = _random_like(whole.y), LEAK * torch.finfo(whole.y.dtype).eps
    own = _received(whole, random[None])[0]
    largest = float(own.max())
    # a token that receives nothing, or very little, is held against the largest
    size = torch.where(own > 1e-30 * largest, own, largest) if largest > 0 else torch.ones_like(own)
    random = random / size[:, None].to(random)
    numbers = torch.arange(tokens)
    for bit in range((tokens - 1).bit_length()):
        for value in (0, 1):
            inside = (numbers >> bit) & 1 == value
            received = _received(whole, (random * inside[:, None].to(random))[None])[0]
            _refuse_leak(received, ~inside, unit, structure, f"tokens whose number has bit {bit} = {value}")


def _random_like(y: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(y.shape, generator=generator, dtype=y.dtype).to(y.device)


def _received(whole: Linearisation, cotangents: torch.Tensor) -> torch.Tensor:
    """The norm of what each input token receives of each cotangent, (k, tokens), float64, on the host."""
    pulled: torch.Tensor = whole.pull(cotangents).double().norm(dim=-1).cpu()
    if not bool(pulled.isfinite().all()):
        raise InputError("the derivative at x is not finite (NaN or infinite): a square root of 0, 0/0 or an overflow")
    return pulled


def _refuse_leak(received: torch.Tensor, outside: torch.Tensor, allowed: float, structure: Structure, of: str) -> None:
    leak = float(received[outside].max()) if bool(outside.any()) else 0.0
    if not leak <= allowed:
        s = int(torch.where(outside, received, -1.0).argmax())
        raise VerificationError(
            f"claimed {structure.name}, but output {of} depends on input token {s} "
            f"(by {leak:.1e}, rounding explains {allowed:.0e}); use structure=Dense()"
        )


class WrittenProduct:
    """Σ blocks·v of the panels as they pass, for a random v: what is stored, against a product that does not form J."""

    def __init__(self, tokens_in: int, like: torch.Tensor, tokens_out: int, d_out: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.v = torch.randn(tokens_in, like.shape[1], generator=generator, dtype=like.dtype).to(like.device)
        self.sum = like.new_zeros(tokens_out, d_out)

    def add(self, rows: tuple[int, ...], columns: tuple[int, ...], blocks: torch.Tensor) -> None:
        """Some blocks (n, d_out, d_in) at (rows[i], columns[i])."""
        products = (blocks @ self.v[list(columns), :, None])[..., 0]
        self.sum.index_add_(0, torch.tensor(rows, device=self.sum.device), products)

    def error(self, expected: torch.Tensor) -> float:
        """‖Σ blocks·v − J·v‖/‖J·v‖, J·v (tokens_out, d_out)."""
        gap, size = self.sum.double() - expected.double(), expected.double()
        largest = max(float(size.abs().max()), torch.finfo(torch.float64).tiny)  # squares may leave the range
        return ratio(float((gap / largest).norm()), float((size / largest).norm()))


def explained(dtype: torch.dtype) -> float:
    """Relative difference of two products that rounding can explain."""
    return max(1e4 * torch.finfo(dtype).eps, 1e-9)


def ratio(part: float, whole: float) -> float:
    """part / whole, infinite for anything that is not a number."""
    if not (math.isfinite(part) and math.isfinite(whole)):
        return math.inf
    return 0.0 if part == 0 else part / whole if whole > 0 else math.inf
