"""A Jacobian written out in its non-zero blocks, in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tightpass.jacobians.operator import Jacobian
from tightpass.structure import Panel, Structure


@dataclass
class Written:
    """The panels of a Jacobian, kept; a source for `spectra`."""

    structure: Structure
    shape: tuple[int, int]
    d_out: int
    d_in: int
    kept: list[Panel] = field(default_factory=list)

    @classmethod
    def like(cls, J: Jacobian) -> Written:
        return cls(J.structure, J.shape, J.d_out, J.d_in)

    def panels(self) -> Iterator[Panel]:
        return iter(self.kept)
