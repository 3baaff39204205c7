"""A computation once more with every operation perturbed: how much its rounding may matter.

Monte Carlo arithmetic (Parker 1997; Vignes 2004): each result, and what sums and fused operations read, is multiplied by
1 + eps·z for a Gaussian z. The same tells checks what rounding may explain. Where a computation cancels, in its value or in
a derivative that torch has rounded to 0 or 1 and lost, so do its perturbed versions, by different amounts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

DRAWS = 8
"""Perturbed computations."""
EXACT = frozenset(
    """
    alias cat chunk clone constant_pad_nd copy detach diag_embed diagonal_scatter expand fill flip gather index index_put
    index_select item lift_fresh masked_fill permute repeat roll select_backward select_scatter slice_backward
    slice_scatter sort stack t topk tril triu unfold_backward where _local_scalar_dense _unsafe_view
    arange empty empty_like eye full full_like new_empty new_full new_ones new_zeros ones ones_like scalar_tensor zero zeros
    zeros_like _efficientzerotensor
    abs amax amin argmax argmin ceil clamp clamp_max clamp_min floor hardtanh hardtanh_backward max maximum min minimum neg
    relu round sgn sign threshold threshold_backward trunc
    eq ge gt isclose isfinite isinf isnan le logical_and logical_not logical_or logical_xor lt nan_to_num ne
    """.split()  # noqa: SIM905 - to be read
)
"""Operations that round nothing."""
PLAIN = frozenset(
    """
    add cos div exp log mul pow reciprocal rsqrt rsub sigmoid sin sqrt square sub tan tanh true_divide _to_copy
    _softmax _safe_softmax
    """.split()  # noqa: SIM905
)
"""Operations that round nothing but what they give."""
WHOLE = frozenset("add addmm baddbmm bmm cumsum dot mm mul mv rsub square sub sum".split())  # noqa: SIM905
"""Operations that give whole numbers for whole numbers: exact while they are small, as positions and masks are."""
UNDERFLOWING = frozenset(
    """
    div erfc exp exp2 gelu gelu_backward linalg_vector_norm mul norm pow prod reciprocal sigmoid sigmoid_backward square
    tanh_backward _softmax _safe_softmax
    """.split()  # noqa: SIM905
)
"""Operations that may give 0, or next to it, where the range ends, for arguments that are not 0."""


def _of_gelu(grad: torch.Tensor, z: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """1 + erf loses its tail; 1 − tanh² of the other kind as well, times the slope inside."""
    u = z.abs().clamp(max=8)  # beyond, tanh is 1 and nothing is left of it
    return grad * (1 + 0.8 * u * (1 + 0.134 * u * u))


HIDDEN: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "gelu": lambda args, out: args[0],
    "gelu_backward": lambda args, out: _of_gelu(*args[:2]),
    "_softmax": lambda args, out: torch.special.entr(out),  # −a·log a: its exponents are rounded
    "_safe_softmax": lambda args, out: torch.special.entr(out),
    "linalg_vector_norm": lambda args, out: torch.where(
        out > 0, torch.finfo(out.dtype).tiny / out, 0.0
    ),  # tiny squares
}
"""What more operations round inside, where neither arguments nor results show it: of the size of these."""


class Perturbing(TorchDispatchMode):
    """Every operation inside is off by about a rounding unit of its precision; where `only` one is given, those in that."""

    def __init__(self, seed: int, only: torch.dtype | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.source, self.only = torch.Generator().manual_seed(seed), only

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__.removesuffix("_")
        if func.is_view or name in EXACT or (name == "linalg_vector_norm" and math.isinf(_order(args))):
            return func(*args, **kwargs)
        if name == "_to_copy":
            return self._cast(func(*args, **kwargs), args[0])
        whole = name in WHOLE and all(_is_whole(a) for a in args)
        read = (args, kwargs) if name in PLAIN or whole else tree_map_only(torch.Tensor, self._off, (args, kwargs))
        read = tree_map_only(float, self._constant_of(args), read)
        if func._schema.is_mutable:  # what is written to must stay the same tensor
            out = func(args[0], *read[0][1:], **read[1])
            return out.copy_(self._off(out)) if isinstance(out, torch.Tensor) and not whole else out
        out = func(*read[0], **read[1])
        if whole and _is_whole(out):
            return out
        if name in HIDDEN:
            hidden = HIDDEN[name](args, out)
            out = out + (self._off(hidden) - hidden)
        if name in UNDERFLOWING:
            out = self._above_zero(out, args)
        return tree_map_only(torch.Tensor, self._off, out)

    def _cast(self, out: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """A number in fewer bits is rounded."""
        both = out.is_floating_point() and a.is_floating_point()
        return self._off(out) if both and torch.finfo(out.dtype).eps > torch.finfo(a.dtype).eps else out

    def _constant_of(self, args: Any) -> Callable[[float], float]:
        """A number of Python's beside a tensor, which may not hold it."""
        dtype = next((a.dtype for a in args if isinstance(a, torch.Tensor) and a.is_floating_point()), torch.float64)
        if dtype == torch.float64 or self.only not in (None, dtype):
            return lambda constant: constant

        def rounded(constant: float) -> float:
            if not math.isfinite(constant) or float(torch.tensor(constant, dtype=dtype)) == constant:
                return constant
            return constant * (1 + torch.finfo(dtype).eps * float(torch.randn((), generator=self.source)))

        return rounded

    def _above_zero(self, out: torch.Tensor, args: Any) -> torch.Tensor:
        """The least normal number, about, in place of what underflowed."""
        if out.is_meta or not out.is_floating_point() or self.only not in (None, out.dtype):
            return out
        least = torch.finfo(out.dtype).tiny
        under = out.abs() < least
        for a in args:
            if isinstance(a, torch.Tensor):
                some = a != 0
                under = under & (some if _broadcasts(a, out) else some.any())
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


def _order(args: Any) -> float:
    """Of a norm; the largest entry's rounds nothing."""
    return float(args[1]) if len(args) > 1 else 2.0


def _is_whole(a: Any) -> bool:
    """Small whole numbers, on which sums and products are exact."""
    if isinstance(a, float | int):
        return float(a).is_integer()
    if not isinstance(a, torch.Tensor) or not a.is_floating_point() or a.is_meta:
        return not (isinstance(a, torch.Tensor) and (a.is_complex() or a.is_meta))
    return bool((a == a.round()).all()) and bool((a.abs() * torch.finfo(a.dtype).eps < 1).all())


def _broadcasts(a: torch.Tensor, out: torch.Tensor) -> bool:
    return a.ndim <= out.ndim and all(n in (1, m) for n, m in zip(reversed(a.shape), reversed(out.shape), strict=False))


def rounding(product: Callable[[], torch.Tensor], only: torch.dtype | None = None) -> float:
    """How far what `product` computes moves, ‖·‖_F: the root of the mean square over all draws; infinite where one is not
    finite.

    Not ‖·‖₂, which is less for random changes than for such as all have one sign, as the rounding of many equal numbers.
    """
    plain, sizes = product(), []
    for seed in range(DRAWS):
        with Perturbing(seed, only):
            off = product()
        sizes.append(size_of((off - plain).double()))
    return float(torch.tensor(sizes, dtype=torch.float64).square().mean().sqrt())


def size_of(off: torch.Tensor) -> float:
    """‖·‖_F; infinite where an entry is not finite."""
    largest = float(off.abs().max())
    if largest == 0:
        return 0.0
    if not math.isfinite(largest):
        return math.inf
    return largest * float((off / largest).norm())
