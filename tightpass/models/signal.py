"""What a model reads that is no text, such as an image: its shape, and the tokens that one makes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

SUBJECTS = {"pixel_values": ("pixels", "image"), "input_features": ("features", "sound")}
"""What such an input is made of, and is of, by its name."""


@dataclass(frozen=True)
class Signal:
    """One kind of input.

    name       what the model's forward pass calls it
    shape      of one: (channels, height, width) or (mel bins, frames)
    piece      what becomes a token, along the axes behind the first: height and width of a patch, or frames
    extra      tokens that are no piece, such as that of a class
    any_size   whether the model takes other sizes along those axes
    """

    name: str
    shape: tuple[int, ...]
    piece: tuple[int, ...]
    extra: int = 0
    any_size: bool = False

    def tokens(self, shape: tuple[int, ...] | None = None) -> int:
        """How many an input of some shape makes; one of the model's own shape, if none is given."""
        sizes = (self.shape if shape is None else shape)[1:]
        return math.prod(size // part for size, part in zip(sizes, self.piece, strict=True)) + self.extra

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether an input of this shape can be read."""
        if not self.any_size:
            return shape == self.shape
        return (len(shape), *shape[:1]) == (len(self.shape), self.shape[0]) and self.tokens(shape) > self.extra

    @property
    def expected(self) -> str:
        """The shapes that are taken, in words."""
        if not self.any_size:
            return f"shape {self.shape}"
        least = " × ".join(map(str, self.piece))
        return f"shape ({self.shape[0]}, height, width) of at least {least} pixels"


def pixels(config: Any, extra: int, any_size: bool = False) -> Signal:
    """An image, cut into patches, as configurations of vision models describe it."""
    size, patch = both(config.image_size), both(config.patch_size)
    return Signal("pixel_values", (int(config.num_channels), *size), patch, extra, any_size)


def both(size: Any) -> tuple[int, int]:
    """Height and width, which one number may stand for."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
