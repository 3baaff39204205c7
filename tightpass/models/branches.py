"""What a layer adds to the residual stream: its pieces put together as functions of (tokens, width)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tightpass.models.capture import Call, first
from tightpass.models.parts import LayerParts

Function = Callable[[torch.Tensor], torch.Tensor]


def bare_mlp(parts: LayerParts, act: Function | None = None) -> Function:
    """The MLP by itself; with another function between its maps, if one is given and it has such a place."""
    if parts.mlp is not None:
        return _by_batches(parts.mlp)
    up, own, down = parts.plain_mlp
    between = own if act is None else act
    return lambda h: down(between(up(h)))


def _by_batches(module: nn.Module) -> Function:
    def apply(h: torch.Tensor) -> torch.Tensor:
        return first(module(h[None]))[0]

    return apply


def bare_attention(parts: LayerParts, call: Call, head: int | None = None) -> Function:
    """The attention by itself, as it was called; or what one head adds to its output."""
    heads = mixed_by(parts, call)

    def attention(h: torch.Tensor) -> torch.Tensor:
        mixed = heads(h)
        y: torch.Tensor = parts.projection(mixed) if head is None else head_share(parts, mixed, head)
        return y

    return attention


def bare_mixer(parts: LayerParts, call: Call) -> Function:
    """What mixes values over tokens in a layer without attention, as it was called."""
    mixer: Any = parts.mixer
    return lambda h: first(mixer(h[None], *call.args, **call.kwargs))[0]


def read_through(norm: nn.Module | None, bare: Function) -> Function:
    """A piece behind its pre-norm, if it has one."""
    return bare if norm is None else lambda x: bare(norm(x))


def added(parts: LayerParts, branch: Function, post: nn.Module | None) -> Function:
    """What the residual stream receives of a branch: behind its post-norm, times the layer's multiplier."""
    normed = branch if post is None else lambda x: post(branch(x))
    return normed if parts.scale == 1 else lambda x: normed(x) * parts.scale


def attention_branch(parts: LayerParts, call: Call) -> Function:
    """All that attention adds, or what stands in its place."""
    bare = bare_attention(parts, call) if parts.has_attention else bare_mixer(parts, call)
    return added(parts, read_through(parts.attn_norm, bare), parts.attn_post)


def mlp_branch(parts: LayerParts, act: Function | None = None) -> Function:
    """All that the MLP adds."""
    return added(parts, read_through(parts.mlp_norm, bare_mlp(parts, act)), parts.mlp_post)


def recomposed(parts: LayerParts, call: Call) -> Function:
    """The layer, put together from its branches and the norms on its sums."""
    attention, mlp = attention_branch(parts, call), mlp_branch(parts)

    def layer(x: torch.Tensor) -> torch.Tensor:
        if parts.parallel:
            return x + attention(x) + mlp(x)
        for branch, after in ((attention, parts.after_attn), (mlp, parts.after_mlp)):
            x = x + branch(x)
            x = x if after is None else after(x)
        return x

    return layer


def head_share(parts: LayerParts, mixed: torch.Tensor, head: int) -> torch.Tensor:
    """What one head of `mixed` (tokens, heads·d_head) adds to the output of the projection, whatever module that is."""
    projection: Any = parts.projection
    own = torch.zeros(mixed.shape[-1], dtype=mixed.dtype, device=mixed.device)
    own[head * parts.d_head : (head + 1) * parts.d_head] = 1
    share: torch.Tensor = projection(mixed * own) - projection(torch.zeros_like(mixed))
    return share


class Reading(nn.Module):
    """In the place of a projection: keeps what it reads, and passes it on."""

    read: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.read = x
        return x


def mixed_by(parts: LayerParts, call: Call) -> Function:
    """The attention up to what its output projection reads, (tokens, heads·d_head), whatever its module does behind that."""
    inside = parts.projection_inside

    def mixed(h: torch.Tensor) -> torch.Tensor:
        if inside is None:
            y: torch.Tensor = parts.context(h[None], *call.args, **call.kwargs)[0]
            return y[0]
        reading = Reading()
        replaced(parts.context, inside, reading)(h[None], *call.args, **call.kwargs)
        return reading.read[0]

    return mixed


def replaced(module: nn.Module, path: str, new: nn.Module) -> nn.Module:
    """A copy of `module` that shares its weights, with the module at `path` replaced."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    head, _, rest = path.partition(".")
    child = twin._modules[head]
    assert child is not None
    twin._modules[head] = replaced(child, rest, new) if rest else new
    return twin
