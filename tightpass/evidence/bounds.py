"""What the structure of a block alone says of its rank."""

from __future__ import annotations

from torch import nn

from tightpass.evidence.grouped import attention_bounds
from tightpass.evidence.units import Units
from tightpass.models.blocks import Block
from tightpass.rank.records import Bound


def structural_bounds(block: Block, found: Units) -> tuple[Bound, ...]:
    """Upper bounds on the rank of J, tightest first; the last is always its size."""
    T, d = block.x.shape
    bounds = [Bound(T * d, f"{T} tokens × width {d}")]
    kind, parts = block.kind, block.layers[0]
    branch = kind in ("mlp", "attn", "head") and not block.options.residual
    loses = 1 if input_null(block) else 0
    if loses:
        bounds.append(Bound(T * (d - 1), f"{T} tokens × ({d} − 1 direction that the LayerNorm removes)"))
    if branch and kind == "mlp":
        count = parts.d_ff
        bounds.append(Bound(T * count, f"{T} tokens × {count} units"))
        if found.active is not None:
            open_units = found.undecided or (0,) * T
            counts = zip(found.active, open_units, strict=True)
            limited = sum(min(count + undecided, d - loses) for count, undecided in counts)
            mean = sum(found.active) / T
            capped = f", at most {d - loses} each" if any(c > d - loses for c in found.active) else ""
            undecided = f", and {found.kinks} undecided" if found.kinks else ""
            bounds.append(Bound(limited, f"{T} tokens × {mean:.1f} active units on average{capped}{undecided}"))
    if branch and kind == "attn":
        bounds += attention_bounds(block)
    if branch and kind == "head":
        d_head = parts.d_head
        bounds.append(Bound(T * d_head, f"{T} tokens × {d_head} directions of the head"))
    if kind in ("layer", "model") and ends_in_layer_norm(block):
        bounds.append(Bound(T * (d - 1), f"{T} tokens × ({d} − 1 direction that the last LayerNorm removes)"))
    return tuple(sorted(bounds, key=lambda bound: bound.rank))


def input_null(block: Block) -> bool:
    """Whether J is zero on (1, .., 1) of every input token, which a LayerNorm in front removes."""
    parts, options = block.layers[0], block.options
    norm = {"mlp": parts.mlp_norm, "attn": parts.attn_norm, "head": parts.attn_norm}.get(block.kind)
    return options.norm and not options.residual and removes_mean(norm)


def ends_in_layer_norm(block: Block) -> bool:
    """Whether the block's output leaves through a LayerNorm."""
    last = block.layers[-1].after_mlp if block.final_norm is None else block.final_norm
    return removes_mean(last)


def removes_mean(norm: nn.Module | None) -> bool:
    """Whether a norm is torch's LayerNorm itself: others, and what is derived from it, may keep the mean."""
    return isinstance(norm, nn.LayerNorm) and type(norm).forward is nn.LayerNorm.forward
