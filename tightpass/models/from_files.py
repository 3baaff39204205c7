"""A model's files -> the model, tensor by tensor: all of it, or all but its layers, which are read in turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tightpass.errors import InputError
from tightpass.models import gguf_models
from tightpass.models.families.base import family_of
from tightpass.models.files import check_weights
from tightpass.models.gguf_files import GGUF
from tightpass.models.invented import refuse_invented
from tightpass.models.skeleton import Weights, compared, fill, without_numbers
from tightpass.models.stored import Named, check_stored, refuse_bare, stored_in
from tightpass.models.streamed import Streamed, streamed


def read_whole(name: str, place: GGUF | Path, config: Any, dtype: torch.dtype) -> nn.Module:
    """A base model with its weights. Raises InputError unless they are all there, and of its shapes.

    place   a GGUF file, or a directory in Hugging Face format
    """
    base = _skeleton(place, config, dtype)
    fill(base, "", _weights(name, place, base), torch.device("cpu"))
    return base


def read_in_turn(name: str, place: GGUF | Path, config: Any, dtype: torch.dtype, device: torch.device) -> Streamed:
    """Likewise, its layers left in the files."""
    base = _skeleton(place, config, dtype)
    return streamed(base, family_of(config), _weights(name, place, base), device)


def _skeleton(place: GGUF | Path, config: Any, dtype: torch.dtype) -> nn.Module:
    """A base model with buffers, and without weights."""
    from transformers import AutoModel

    with without_numbers(), torch.random.fork_rng(devices=[]):
        base: Any = AutoModel.from_config(config, dtype=dtype, attn_implementation=config._attn_implementation)
        _compute_buffers(base)
    if isinstance(place, GGUF):
        gguf_models.turn_as_stored(base, place)
    family_of(config).prepare(base)
    base.eval().requires_grad_(False)
    return base  # type: ignore[no-any-return]


def _compute_buffers(base: Any) -> None:
    """Tables of positions and their like once more, in torch's own precision, as transformers has them in a model from files."""
    for module in base.modules():
        module._is_hf_initialized = False
    base.initialize_weights()


def _weights(name: str, place: GGUF | Path, base: Any) -> Weights:
    """A skeleton's weights in its files."""
    prefix, keys = base.base_model_prefix, base.state_dict()
    found: Weights
    if isinstance(place, GGUF):
        found = gguf_models.Renamed(place, keys, prefix, base.config)
    else:
        refuse_bare(place)
        check_weights(place)
        check_stored(place)
        found = Named(stored_in(place), keys, prefix)
        _refuse_apart(name, found)
    refuse_invented(name, family_of(base.config), compared(base, found))
    return found


def _refuse_apart(name: str, weights: Weights) -> None:
    """Raises InputError for experts that lie in the files one by one, where the model has them in one tensor."""
    apart = next((key for key in weights.beyond if ".experts." in key), None)
    if apart is not None:
        raise InputError(
            f"the layers of {name} cannot be read one at a time: its files have each expert apart ({apart}), and they are "
            "joined only where a model is read whole; give more --memory"
        )
