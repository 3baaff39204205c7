"""A function's Jacobian once more with every operation perturbed (`perturbing.py`): how far it moves."""

from __future__ import annotations

import math

import torch

from tightpass.jacobians.autodiff import Linearisation
from tightpass.jacobians.forms.base import Cost
from tightpass.jacobians.perturbing import rounding, size_of
from tightpass.models.blocks import depth_of, width_of
from tightpass.models.shape import Shape
from tightpass.work import Work, kept, passing

FEW = 128
"""Up to as many rows of J are compared one by one; beyond, random combinations of them."""
COMBINATIONS = 4
COPIES = 4
"""Of a number that is perturbed: itself, its noise, the factor, and what shows whether it is finite."""


def work_of(cost: Cost, kind: str, tokens: int, shape: Shape, itemsize: int) -> Work:
    """Of `moved`: combinations pulled back through a graph of its own; an operation reads copies of what it is given, the
    largest weight among them."""
    layer = shape.widest
    graph = depth_of(shape, kind) * tokens * width_of(shape, kind, tokens) * itemsize
    weight = shape.width * max(layer.d_ff, layer.heads * layer.d_head) * itemsize
    return kept(graph).then(passing(cost.product_bytes(COMBINATIONS, itemsize) + COPIES * weight)).dropped()


def moved(whole: Linearisation) -> float:
    """‖J_perturbed − J‖_F; of a J with many rows from random combinations of them."""
    probes = _cotangents(whole.y)
    size = rounding(lambda: Linearisation(whole.fn, whole.x, whole.columns).pull(probes))
    return size if len(probes) == whole.y.numel() else size / math.sqrt(COMBINATIONS)


def frobenius(whole: Linearisation, off: Linearisation | None = None) -> float:
    """‖J‖_F, or ‖J_off − J‖_F of the same in another precision; of a J with many rows from random combinations of them."""
    probes = _cotangents(whole.y)
    pulled = whole.pull(probes).double()
    size = size_of(pulled if off is None else off.pull(probes.to(off.x.dtype)).double() - pulled)
    return size if len(probes) == whole.y.numel() else size / math.sqrt(COMBINATIONS)


def _cotangents(y: torch.Tensor) -> torch.Tensor:
    """All unit cotangents (M, T', d') of few, else Gaussian ones."""
    if y.numel() <= FEW:
        return torch.eye(y.numel(), dtype=y.dtype, device=y.device).view(-1, *y.shape)
    generator = torch.Generator().manual_seed(5)
    return torch.randn(COMBINATIONS, *y.shape, generator=generator, dtype=y.dtype).to(y.device)
