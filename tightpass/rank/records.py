"""What is learnt about a Jacobian beside its singular values, as it is stored: plain data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Part:
    """One error source: a bound on ‖E‖₂, how it is known, and how surely (a key of `CONFIDENCE`).

    chance   the probability that the bound fails, where random vectors were drawn
    """

    name: str
    bound: float
    method: str
    confidence: str
    chance: float = 0.0


@dataclass(frozen=True)
class Bound:
    """The rank is at most this, for a reason in words."""

    rank: int
    reason: str


@dataclass(frozen=True)
class HeadShares:
    """What each head of an attention adds, J = Σ_h J_h (and the identity, with a residual).

    gain      (H,) u₁ᵀ J_h v₁, in the units of J: they add up to σ₁, less what a residual adds
    energy    (H,) ‖J_h‖_F² / ‖J‖_F²: more or less than 1 in all, as far as heads cancel or agree; None beyond 256 tokens
    """

    gain: tuple[float, ...]
    energy: tuple[float, ...] | None


@dataclass(frozen=True)
class PathShares:
    """The two paths of an attention, J = J_values + J_pattern (and the identity, with a residual): through the values at weights
    that are held, and through the softmax's pattern.

    directions   how many each can add at most, where queries share keys and values; else None
    energy       ‖J_values‖_F² and ‖J_pattern‖_F², relative to ‖J‖_F²: more or less than 1 in all, as far as they cancel or agree
    heads        likewise of each head by itself, ((H,), (H,)); None where that takes too long
    """

    directions: tuple[int, int] | None
    energy: tuple[float, float]
    heads: tuple[tuple[float, ...], tuple[float, ...]] | None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PathShares:
        directions, heads = values["directions"], values["heads"]
        return cls(
            None if directions is None else (int(directions[0]), int(directions[1])),
            (values["energy"][0], values["energy"][1]),
            None if heads is None else (tuple(heads[0]), tuple(heads[1])),
        )


@dataclass(frozen=True)
class Explanation:
    """null        how far J is from killing what the norm in front of it removes: the largest ‖J n‖ over these unit
                directions n, zero but for rounding, so that ‖E‖₂ is at least this; None where there are none
    heads       of an attention in closed form
    distances   ((t − s, share of ‖J‖_F²), ...) of blocks that mix tokens
    paths       of an attention in closed form; None in runs of before
    """

    null: float | None = None
    heads: HeadShares | None = None
    distances: tuple[tuple[int, float], ...] | None = None
    paths: PathShares | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Explanation:
        heads, distances = values["heads"], values["distances"]
        if heads is not None:
            energy = heads["energy"]
            heads = HeadShares(tuple(heads["gain"]), None if energy is None else tuple(energy))
        paths = values.get("paths")
        return cls(
            values["null"],
            heads,
            None if distances is None else tuple((int(d), share) for d, share in distances),
            None if paths is None else PathShares.from_dict(paths),
        )


@dataclass(frozen=True)
class Evidence:
    """energy       ‖J‖_F²
    arithmetic   the floor's part of the model's arithmetic
    bounds       structural upper bounds on the rank, tightest first
    kinks        undecided ReLU units, numbers at a clamp, and the widths of tokens between two experts
    active       active units of each token, where there is one ReLU MLP
    route        how the Jacobian was computed
    estimated    whether `energy` is an estimate from random products
    agreement    ‖J v − J' v‖/‖J' v‖ for a random v, J' in twice float64's precision, or by automatic differentiation in
                 forward mode where formulas are not known; a check for mistakes. None where J was never formed
    explanation  where the numbers come from
    saturated    softmax rows, of all heads inside, whose largest weight is below 1 and rounds to 1 in float32
    undecided    `kinks` of each token; None where unknown, as in runs of before, or where there are no such units
    excess       by how much the true ‖J‖_F may be more than √energy, where J was never formed; None for estimates, and in
                 runs of before
    """

    energy: float
    arithmetic: Part
    bounds: tuple[Bound, ...]
    kinks: int
    active: tuple[int, ...] | None
    route: str
    estimated: bool = False
    agreement: float | None = None
    explanation: Explanation = field(default_factory=Explanation)
    saturated: int = 0
    undecided: tuple[int, ...] | None = None
    excess: float | None = None

    def as_dict(self) -> dict[str, Any]:
        values = asdict(self)
        for name in ("undecided", "excess"):  # equal to what runs of before have stored
            if values[name] is None:
                del values[name]
        return values

    @property
    def most_energy(self) -> float:
        """What the sum of the squares of leading values may not exceed; an estimate of ‖J‖_F² may be off by a half."""
        if self.excess is None:
            return self.energy * (1.5 if self.estimated else 1.001)
        return 1.001 * float(math.sqrt(self.energy) + self.excess) ** 2

    def kinks_of(self, token: int) -> int:
        """Undecided units of one token, at most."""
        return self.kinks if self.undecided is None else self.undecided[token]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Evidence:
        """What `as_dict` gave, possibly through JSON."""
        active, undecided = values["active"], values.get("undecided")
        return cls(
            **{
                **values,
                "arithmetic": Part(**values["arithmetic"]),
                "bounds": tuple(Bound(**bound) for bound in values["bounds"]),
                "active": None if active is None else tuple(active),
                "explanation": Explanation.from_dict(values["explanation"]),
                "undecided": None if undecided is None else tuple(undecided),
            }
        )
