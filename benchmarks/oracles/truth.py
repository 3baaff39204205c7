"""Floors of small blocks beside their true errors, by the Jacobian to 40 digits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import mpmath
import numpy as np
import pytest
import torch

import tightpass as tp
from oracles import extended
from oracles.small_models import HF_MODELS
from tightpass.evidence import arithmetic
from tightpass.jacobians.twice.block import twice
from tightpass.models.blocks import Block
from tightpass.rank.floor import Floor
from tightpass.rank.spectrum import Spectrum
from tightpass.spectra.refine import reference_values
from tightpass.structure import Panel

IDS = [5, 17, 2, 88, 41]
TOPK = 12


@dataclass(frozen=True)
class Truth:
    """written   panels of the Jacobian as it was computed
    error   ‖J − true J‖₂ of that
    values  singular values of the true J
    """

    block: Block
    written: tuple[Panel, ...]
    error: float
    values: np.ndarray

    @property
    def rounding(self) -> float:
        """eps·σ₁."""
        return float(torch.finfo(self.block.x.dtype).eps) * float(self.values[0])


@cache
def truth(name: str, kind: str, dtype: str, tokens: int) -> Truth:
    head = 1 if kind == "head" else None
    block = tp.block(tp.load_model(HF_MODELS[name], dtype=dtype), kind, layer=1, head=head, token_ids=IDS[:tokens])
    true = extended.jacobian(block)
    written = tuple(tp.jacobian(block).panels())
    E = extended.error(dense(written, *block.x.shape), true)
    with mpmath.workdps(extended.DIGITS):
        rounded = true.astype(np.float64)  # half a rounding of each entry from the truth
    return Truth(block, written, float(np.linalg.norm(E, 2)), reference_values(rounded).values)


def dense(written: tuple[Panel, ...], tokens: int, d: int) -> np.ndarray:
    """J in whole, (tokens·d, tokens·d)."""
    J = np.zeros((tokens, d, tokens, d), written[0].blocks.numpy().dtype)
    for panel in written:
        for t, s, block in zip(panel.rows, panel.columns, panel.blocks, strict=True):
            J[t, :, s] = block.numpy()
    return J.reshape(tokens * d, tokens * d)


ROUTES = ("exact", "lanczos", "perturbed", "topk")


def spectrum(block: Block, route: str) -> Spectrum:
    """By a route of the floor: E formed; its norm by Lanczos, as of a large J; perturbed computations, as of unknown
    pieces."""
    J = tp.jacobian(block)
    if route == "topk":
        return tp.spectrum(J, method="topk", k=TOPK)
    found = tp.spectrum(J)
    if route == "exact":
        return found
    written = list(J.panels())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "WHOLE", 0)
        if route == "lanczos":
            part = arithmetic.measured(J, lambda: iter(written), twice(block))
        else:
            part = arithmetic.estimated(J, lambda: iter(written))
    return replace(found, floor=Floor((part, *found.floor.parts[1:]), found.floor.conventional))


@dataclass(frozen=True)
class Held:
    """A floor beside what it must cover, all in the units of J."""

    model: str
    kind: str
    dtype: str
    route: str
    floor: float
    error: float
    moved: float
    rounding: float

    @property
    def ratio(self) -> float:
        """Floor over ‖E‖₂ + eps·σ₁."""
        return self.floor / (self.error + self.rounding)

    def is_never_below(self, factor: float = 1.0) -> bool:
        """Whether the floor, times a factor, covers ‖E‖₂ and every |σ̂ − σ|; of topk, whose floor is about k values, those."""
        floor = factor * self.floor
        return floor >= self.moved and (self.route == "topk" or floor >= self.error)

    def is_tight(self, factor: float = 1.0) -> bool:
        """Whether it is at most 10 times ‖E‖₂ + eps·σ₁."""
        return factor * self.floor <= 10 * (self.error + self.rounding)


def held(name: str, kind: str, dtype: str, route: str, tokens: int) -> Held:
    known = truth(name, kind, dtype, tokens)
    s = spectrum(known.block, route)
    moved = float(np.abs(s.values - known.values[: len(s.values)]).max())
    return Held(name, kind, dtype, route, s.floor.total, known.error, moved, known.rounding)
