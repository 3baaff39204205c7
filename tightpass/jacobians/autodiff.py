"""Products with a Jacobian by automatic differentiation, in chunks of columns.

Jᵀ·Y is `vmap` over the pullback, whose forward pass runs once. J·X is `vmap` over `jvp` with the
point held outside of the batch, so that the forward pass runs once a chunk
(Pearlmutter 1994; Griewank & Walther 2008, ch. 3).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch.func import jvp, vjp, vmap

from tightpass.errors import InputError, TightpassError

Function = Callable[[torch.Tensor], torch.Tensor]

# Intermediates of this size stay in the allocator's arena. Larger ones are mapped afresh
# for every chunk, and fresh pages cost more than the arithmetic that fills them.
ARENA_BYTES = 16 * 2**20


def chunk_size(bytes_per_column: int, memory: int | None) -> int:
    """Columns per chunk: as many as fit the arena, or a quarter of `memory` if that is less."""
    budget = ARENA_BYTES if memory is None else min(ARENA_BYTES, memory // 4)
    return max(1, budget // max(bytes_per_column, 1))


class Linearisation:
    """A function at a point: its value, tangents pushed forward, cotangents pulled back.

    fn, x     a map of (tokens, d) tensors to (tokens', d') tensors, and the point
    columns   how many tangents or cotangents are carried at once
    """

    def __init__(self, fn: Function, x: torch.Tensor, columns: int) -> None:
        self.fn, self.x, self.columns = fn, x, columns

    @cached_property
    def _pullback(self) -> tuple[torch.Tensor, Function]:
        try:
            y, pull, *_ = vjp(self._checked, self.x)
        except Exception as error:  # a user's function may raise anything
            raise self._with_batch(in_words(error)) from error
        return y.detach(), lambda cotangent: pull(cotangent)[0]

    def _with_batch(self, error: TightpassError) -> TightpassError:
        """Likewise, or that it works with an axis over texts in front alone, as most models have it."""
        if self._runs(self.x) or not self._runs(self.x[None]):
            return error
        return InputError(
            "the function takes a batch, x[None], and not a (tokens, d) tensor alone; give lambda x: fn(x[None])[0]"
        )

    def _runs(self, x: torch.Tensor) -> bool:
        try:
            with torch.no_grad():
                return isinstance(self.fn(x.clone()), torch.Tensor)
        except Exception:  # a user's function may raise anything
            return False

    def _checked(self, x: torch.Tensor) -> torch.Tensor:
        """The value. Raises InputError for anything but a plain tensor of floating numbers, where x is."""
        y = self.fn(x)
        if not isinstance(y, torch.Tensor):
            raise InputError(
                f"the function cannot be differentiated: it must return one (tokens, d) tensor, got {type(y).__name__}; "
                "take the one that is meant, such as lambda x: fn(x)[0]"
            )
        if y.layout != torch.strided or y.is_nested or y.device != x.device:
            kind = "nested" if y.is_nested else str(y.layout).removeprefix("torch.").removesuffix("_coo")
            remedy = "; .to_dense() makes a plain one of a sparse one" if y.device == x.device else ""
            raise InputError(
                f"the function must return a plain tensor on {x.device}, where x is, got a {kind} one on {y.device}{remedy}"
            )
        if not (y.is_floating_point() or y.is_complex()):
            raise InputError(
                f"the function has no derivative: it returns {y.dtype}, and x moves in steps of any size; return floating numbers"
            )
        return y

    @property
    def y(self) -> torch.Tensor:
        """The value at x."""
        return self._pullback[0]

    def push(self, tangents: torch.Tensor) -> torch.Tensor:
        """(k, tokens, d) tangents -> (k, tokens', d')."""

        def one(tangent: torch.Tensor) -> torch.Tensor:
            pushed: torch.Tensor = jvp(self.fn, (self.x,), (tangent,))[1]
            return pushed

        return self._chunked(one, tangents)

    def pull(self, cotangents: torch.Tensor) -> torch.Tensor:
        """(k, tokens', d') cotangents -> (k, tokens, d)."""
        return self._chunked(self._pullback[1], cotangents)

    def _chunked(self, one: Function, batch: torch.Tensor) -> torch.Tensor:
        """Detached: a module's parameters may ask for gradients."""
        try:
            if batch.shape[0] <= self.columns:
                return vmap(one)(batch).detach()
            return torch.cat([vmap(one)(part).detach() for part in batch.split(self.columns)])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a user's function may raise anything
            raise in_words(error) from error


LEAVES = "it leaves torch (NumPy inside), which derivatives cannot follow; compute in torch throughout"


def in_words(error: Exception) -> TightpassError:
    """What to tell the author of a function that cannot be differentiated."""
    if isinstance(error, TightpassError):
        return error
    said = (str(error).strip().splitlines() or [""])[0]
    known = (
        (
            "saved tensor hooks",
            "torch.utils.checkpoint inside it, which torch.func does not follow; take it out, nothing is kept of many passes here",
        ),
        ("Can't call numpy()", LEAVES),
        ("Cannot access data pointer", LEAVES),
        ("result->level()", "it returns what an earlier call made (memoised, a buffer); make it a function of x alone"),
        ("leaf Variable that requires grad", "it changes its argument in place; give lambda x: fn(x.clone())"),
        (
            "mutate a captured Tensor",
            "it has a state, which it changes (BatchNorm in train mode: call .eval()); make it a function of x alone",
        ),
        (
            "setup_context",
            "its autograd.Function needs forward(..) without ctx, setup_context, and generate_vmap_rule = True",
        ),
        ("generate_vmap_rule", "its autograd.Function needs generate_vmap_rule = True, or a vmap method"),
        ("vmap staticmethod", "its autograd.Function needs generate_vmap_rule = True, or a vmap method"),
        ("jvp", "its autograd.Function, or one of its operations, needs a jvp (forward mode)"),
        (
            "forward AD",
            "one of its operations has no forward mode; for attention, call it within "
            "torch.nn.attention.sdpa_kernel(SDPBackend.MATH)",
        ),
        ("same dtype", "its weights are of another precision than x: call .double() on them, or give x.float()"),
        ("random operation", "it draws random numbers; make it a function of x alone (dropout: call .eval())"),
        ("data-dependent control flow", "its course depends on values of x (.item(), if); use torch.where"),
    )
    for word, remedy in known:
        if word in str(error):
            return InputError(f"the function cannot be differentiated at x: {remedy}")
    return InputError(f"the function cannot be differentiated at x: {type(error).__name__}: {said[:200]}")
