"""What a piece of work takes, from shapes alone; and of pieces that follow each other."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Work:
    """flops   floating-point operations, of those parts that take the time
    peak    bytes of memory that it takes at most, what it leaves included
    left    bytes that stay when it is done, as its result
    """

    flops: float = 0.0
    peak: int = 0
    left: int = 0

    def then(self, *others: Work) -> Work:
        """And the others after it, one by one, while what was left before is still held."""
        total = self
        for other in others:
            peak = max(total.peak, total.left + other.peak)
            total = Work(total.flops + other.flops, peak, total.left + other.left)
        return total

    def dropped(self) -> Work:
        """The same, its result let go in the end."""
        return replace(self, left=0)


def kept(size: float) -> Work:
    """So many bytes that stay."""
    return Work(0.0, int(size), int(size))


def passing(size: float, flops: float = 0.0) -> Work:
    """So many bytes for a while."""
    return Work(flops, int(size))
