"""A function's Jacobian once more with every operation perturbed: how much its rounding may matter.

Monte Carlo arithmetic (Parker 1997; Vignes 2004): each result, and what sums and fused operations read, is multiplied by
1 + eps·z for a Gaussian z. The same tells checks what rounding may explain. Where a computation cancels, in its value or in a derivative that torch has rounded to 0 or 1
and lost, so do its perturbed versions, by different amounts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from tightpass.jacobian.autodiff import Linearisation

DRAWS = 8
"""Perturbed computations."""
FEW = 128
"""Up to as many rows of J are compared one by one; beyond, random combinations of them."""
COMBINATIONS = 4
EXACT = frozenset(
    """
    alias cat chunk clone constant_pad_nd copy detach diag_embed diagonal_scatter expand fill flip gather index index_put
    index_select item lift_fresh masked_fill permute repeat roll select_backward select_scatter slice_backward
    slice_scatter sort stack t topk tril triu unfold_backward where _local_scalar_dense _to_copy _unsafe_view
    arange empty empty_like eye full full_like new_empty new_full new_ones new_zeros ones ones_like scalar_tensor zero zeros
    zeros_like _efficientzerotensor
    abs amax amin argmax argmin ceil clamp clamp_max clamp_min floor hardtanh hardtanh_backward isfinite isinf isnan
    max maximum min minimum neg relu round sgn sign threshold threshold_backward trunc
    """.split()  # noqa: SIM905 - to be read
)
"""Operations that round nothing."""
PLAIN = frozenset(
    [
        "add",
        "cos",
        "div",
        "exp",
        "log",
        "mul",
        "pow",
        "reciprocal",
        "rsqrt",
        "rsub",
        "sigmoid",
        "sin",
        "sqrt",
        "square",
        "sub",
        "tan",
        "tanh",
        "true_divide",
    ]
)
"""Operations that round nothing but what they give."""
HIDDEN: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "gelu": lambda args, out: args[0],  # 1 + erf cancels in the tail
    "gelu_backward": lambda args, out: args[0],
    "_softmax": lambda args, out: torch.special.entr(out),  # −a·log a: its exponents are rounded
    "_safe_softmax": lambda args, out: torch.special.entr(out),
}
"""What more operations round inside, where neither arguments nor results show it: of the size of these."""


UNDERFLOWING = frozenset(
    [
        "_safe_softmax",
        "_softmax",
        "div",
        "erfc",
        "exp",
        "exp2",
        "gelu",
        "gelu_backward",
        "mul",
        "pow",
        "reciprocal",
        "sigmoid",
        "sigmoid_backward",
        "square",
        "tanh_backward",
    ]
)
"""Operations that may give 0, or next to it, where the range ends, for arguments that are not 0."""


class Perturbing(TorchDispatchMode):
    """Every operation inside is off by about a rounding unit of its precision; where `only` one is given, those in that."""

    def __init__(self, seed: int, only: torch.dtype | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.source, self.only = torch.Generator().manual_seed(seed), only

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__.removesuffix("_")
        if func.is_view or name in EXACT:
            return func(*args, **kwargs)
        read = (args, kwargs) if name in PLAIN else tree_map_only(torch.Tensor, self._off, (args, kwargs))
        if func._schema.is_mutable:  # what is written to must stay the same tensor
            out = func(args[0], *read[0][1:], **read[1])
            return out.copy_(self._off(out)) if isinstance(out, torch.Tensor) else out
        out = func(*read[0], **read[1])
        if name in HIDDEN:
            hidden = HIDDEN[name](args, out)
            out = out + (self._off(hidden) - hidden)
        if name in UNDERFLOWING:
            out = self._above_zero(out, args)
        return tree_map_only(torch.Tensor, self._off, out)

    def _above_zero(self, out: torch.Tensor, args: Any) -> torch.Tensor:
        """The least normal number, about, in place of what underflowed."""
        if out.is_meta or not out.is_floating_point() or self.only not in (None, out.dtype):
            return out
        least = torch.finfo(out.dtype).tiny
        under = out.abs() < least
        for a in args:
            under = under & (a != 0) if isinstance(a, torch.Tensor) else under
        if not bool(under.any()):
            return out
        z = torch.randn(out.shape, generator=self.source, dtype=out.dtype).to(out.device)
        return torch.where(under, least * z.abs(), out)

    def _off(self, a: torch.Tensor) -> torch.Tensor:
        rounds = a.is_floating_point() or a.is_complex()
        if not rounds or a._is_zerotensor() or self.only not in (None, a.dtype):
            return a
        z = torch.randn(a.shape, generator=self.source, dtype=a.dtype).to(a.device)
        off = a * (1 + torch.finfo(a.dtype).eps * z)
        return torch.where(off.isfinite(), off, a)  # the lowest number of a mask stays


def rounding(product: Callable[[], torch.Tensor], only: torch.dtype | None = None) -> float:
    """How far what `product` computes, (k, ..), moves as a matrix of k rows, ‖·‖₂: the root of the mean square over all
    draws; infinite where one is not finite."""
    plain, sizes = product(), []
    for seed in range(DRAWS):
        with Perturbing(seed, only):
            off = product()
        sizes.append(_norm((off - plain).double().flatten(1)))
    return float(torch.tensor(sizes, dtype=torch.float64).square().mean().sqrt())


def moved(whole: Linearisation) -> float:
    """‖J_perturbed − J‖: of a J with many rows as ‖·‖_F, from random combinations of them, else as ‖·‖₂."""
    probes = _cotangents(whole.y)
    return rounding(lambda: Linearisation(whole.fn, whole.x, whole.columns).pull(probes))


def _norm(rows: torch.Tensor) -> float:
    largest = float(rows.abs().max())
    if largest == 0:
        return 0.0
    if not math.isfinite(largest):
        return math.inf
    return largest * float(torch.linalg.matrix_norm(rows / largest, 2))


def _cotangents(y: torch.Tensor) -> torch.Tensor:
    """All unit cotangents (M, T', d') of few, else Gaussian ones."""
    if y.numel() <= FEW:
        return torch.eye(y.numel(), dtype=y.dtype, device=y.device).view(-1, *y.shape)
    generator = torch.Generator().manual_seed(5)
    return torch.randn(COMBINATIONS, *y.shape, generator=generator, dtype=y.dtype).to(y.device)
