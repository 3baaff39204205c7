"""A function's Jacobian once more with every operation perturbed: how much its rounding may matter.

Monte Carlo arithmetic (Parker 1997; Vignes 2004): each result, and what sums and fused operations read, is multiplied by
1 + eps·z for a Gaussian z. Where a computation cancels, in its value or in a derivative that torch has rounded to 0 or 1
and lost, so do its perturbed versions, by different amounts.
"""

from __future__ import annotations

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
HIDDEN = {"gelu": 0, "gelu_backward": 0}
"""Operations that cancel inside, where nothing shows it: off by a rounding of this argument, whatever they give."""


class Perturbing(TorchDispatchMode):
    """Every operation inside is off by about a rounding unit of its precision."""

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.source = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__.removesuffix("_")
        if func.is_view or name in EXACT:
            return func(*args, **kwargs)
        if func._schema.is_mutable:  # what is written to must stay the same tensor
            out = func(args[0], *tree_map_only(torch.Tensor, self._off, args[1:]), **kwargs)
            if isinstance(out, torch.Tensor) and out.is_floating_point():
                out.mul_(self._factor(out))
            return out
        out = func(*tree_map_only(torch.Tensor, self._off, args), **tree_map_only(torch.Tensor, self._off, kwargs))
        if name in HIDDEN:
            out = out + args[HIDDEN[name]] * (self._factor(out) - 1)
        return tree_map_only(torch.Tensor, self._off, out)

    def _off(self, a: torch.Tensor) -> torch.Tensor:
        if not a.is_floating_point() or a._is_zerotensor():
            return a
        return a * self._factor(a)

    def _factor(self, a: torch.Tensor) -> torch.Tensor:
        z = torch.randn(a.shape, generator=self.source, dtype=a.dtype)
        return (1 + torch.finfo(a.dtype).eps * z).to(a.device)


def moved(whole: Linearisation) -> float:
    """‖J_perturbed − J‖, the root of the mean square over all draws; of a J with many rows as ‖·‖_F, from random
    combinations of them, else as ‖·‖₂."""
    probes = _cotangents(whole.y)
    plain = whole.pull(probes)
    sizes = []
    for seed in range(DRAWS):
        with Perturbing(seed):
            shaken = Linearisation(whole.fn, whole.x, whole.columns).pull(probes)
        apart = (shaken - plain).double().flatten(1)
        sizes.append(_norm(apart))
    return float(torch.tensor(sizes, dtype=torch.float64).square().mean().sqrt())


def _norm(rows: torch.Tensor) -> float:
    largest = float(rows.abs().max())
    if not 0 < largest < torch.inf:
        return largest
    return largest * float(torch.linalg.matrix_norm(rows / largest, 2))


def _cotangents(y: torch.Tensor) -> torch.Tensor:
    """All unit cotangents (M, T', d') of few, else Gaussian ones."""
    if y.numel() <= FEW:
        return torch.eye(y.numel(), dtype=y.dtype, device=y.device).view(-1, *y.shape)
    generator = torch.Generator().manual_seed(5)
    return torch.randn(COMBINATIONS, *y.shape, generator=generator, dtype=y.dtype).to(y.device)
