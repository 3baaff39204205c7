"""Which block is asked for, and whether a model has such a one. Needs no torch: what reads a question does without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tightpass import doors
from tightpass.errors import InputError

if TYPE_CHECKING:
    from tightpass.models.shape import Shape

KINDS = ("mlp", "attn", "head", "layer", "model")


@dataclass(frozen=True)
class Options:
    """Which block: its kind, whether the pre-norm that it reads through belongs to it, and whether the identity on x is added."""

    kind: str
    layer: int | None = None
    head: int | None = None
    norm: bool = True
    residual: bool = False

    @property
    def name(self) -> str:
        if self.kind == "model":
            return "model"
        if self.kind == "head":
            return f"L{self.layer:02d}.H{self.head:02d}"
        return f"L{self.layer:02d}.{self.kind}"


def check_options(shape: Shape, options: Options, name: str = "the model") -> None:
    """Raises InputError unless a model of that shape has such a block."""
    kind, layer, head = options.kind, options.layer, options.head
    if not doors.one_of(kind, KINDS):
        raise InputError(f"unknown block {doors.shown(kind)}; expected one of {', '.join(KINDS)}")
    if (kind == "model") != (layer is None):
        raise InputError("a layer is needed for every block but `model`, which has none")
    if layer is not None:
        check_layer(layer, len(shape.layers), str(layer), name)
    if kind == "head" and head is None:
        raise InputError("block `head` needs one head, such as head=0")
    if kind != "head" and head is not None:
        raise InputError(f"--head belongs to --block head (head=N to block `head`), got block `{kind}`")
    if kind in ("attn", "head") and layer is not None:
        check_attends(shape, layer, name)
    if head is not None and layer is not None and head not in range(heads := shape.layers[layer].heads):
        raise InputError(f"layer {layer} of {name} has heads 0..{heads - 1}, got {head}")
    if kind == "layer" and not options.norm:
        raise InputError("a layer always contains its norms; leave out norm=False (--no-norm)")
    if options.residual and kind in ("layer", "model"):
        raise InputError(f"a {kind} always contains its residuals; leave out residual=True (--residual)")
    pre_norm = layer is not None and shape.layers[layer].pre_norm
    if options.residual and not options.norm and pre_norm:
        raise InputError(
            "residual adds the identity on the input of the norm, so it needs the norm; leave out norm=False (--no-norm)"
        )


def check_attends(shape: Shape, layer: int, name: str = "the model") -> None:
    """Raises InputError for a layer without attention."""
    if shape.layers[layer].heads == 0:
        others = [str(i) for i in layers_with(shape, "attn")]
        where = f"layers {', '.join(others)} have" if others else "none of its layers has"
        raise InputError(
            f"layer {layer} of {name} mixes tokens without attention, so that it has no block `attn` or `head`; {where}.\n"
            "Of this one there are `mlp` and `layer`"
        )


def layers_with(shape: Shape, kind: str) -> list[int]:
    """The layers that have a block of some kind."""
    return [i for i, layer in enumerate(shape.layers) if layer.heads > 0 or kind not in ("attn", "head")]


def counted(layer: int, count: int, name: str = "the model") -> int:
    """A layer's number: a negative one counts from the end. Raises InputError for one that is not there."""
    if layer >= 0:
        return layer
    if layer < -count:
        raise InputError(f"{name} has layers 0..{count - 1}, or {-count}..-1 from the end, got {layer}")
    return layer + count


def check_layer(layer: int, count: int, got: str, name: str = "the model") -> None:
    """Raises InputError unless a layer is one of so many; `got` is how it was asked for."""
    if not 0 <= layer < count:
        raise InputError(f"{name} has layers 0..{count - 1}, got {got}")
