"""A model that the caller has loaded: taken out of what is wrapped around it, and refused where it is not what it says."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from tightpass.errors import InputError
from tightpass.models.skeleton import put, tied, without_numbers

PLAIN = (torch.Tensor, nn.Parameter)
BETWEEN = "_original_component"
"""What a TransformerBridge calls a module that it has put one of its own around."""
CALLED = "__nnsight__"
"""What nnsight leaves in a module whose calls go through it."""
WRAPPED = ("original_model", "_model", "_module")
"""Attributes that hold the model, of a TransformerBridge and of wrappers of nnsight to 0.4 and from 0.5."""


def is_given(model: Any) -> bool:
    """Whether it is a model, or wrapped around one, and not the name of one."""
    return isinstance(model, nn.Module) or any(isinstance(_plainly(model, name), nn.Module) for name in WRAPPED)


def unwrapped(model: Any) -> nn.Module:
    """The module itself, adapters in it applied. Raises InputError where its weights are not those of its own code, or what is
    wrapped around it is part of what it computes."""
    _refuse_processed(model)
    for name in WRAPPED:
        if isinstance(inner := _plainly(model, name), nn.Module):
            return unwrapped(inner)
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        if getattr(model.active_peft_config, "is_prompt_learning", False):
            raise InputError(
                f"an adapter of type {_kind(model.active_peft_config)} puts what it has learnt in front of the tokens, and is no "
                "part of any block; give the model without it, or with an adapter of weights such as LoRA"
            )
        return unwrapped(model.get_base_model())
    if not isinstance(model, nn.Module):
        raise InputError(f"expected a Hugging Face model, got {type(model).__name__}")
    if not _altered(model) or _adapted_layers(model):
        return model
    refuse_unusable(model)  # what is made anew has no part in train mode
    return _rebuilt(model)


def _altered(model: nn.Module) -> bool:
    """Whether its modules are not called as its own code says: a TransformerBridge puts modules of its own between them, nnsight
    has calls of its own in each. A `forward` that the caller has put there is meant, and stays."""
    return any(CALLED in vars(module) or BETWEEN in module._modules for module in model.modules())


def _rebuilt(model: nn.Module) -> nn.Module:
    """The model as its own code makes it, with the same weights, in eval mode where the given one is."""
    held = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    weights = {name.replace(f"{BETWEEN}.", ""): tensor for name, tensor in held}
    made: Any = type(model)
    with without_numbers():
        fresh: nn.Module = made(copy.deepcopy(model.config))
    for empty, keys in tied(fresh):
        found = next((weights[key] for key in keys if key in weights), None)
        if found is None:
            raise InputError(
                f"the given {made.__name__} was taken apart: it has no {keys[0]}; give the model as it was loaded"
            )
        put(fresh, keys, nn.Parameter(found.detach(), False) if isinstance(empty, nn.Parameter) else found)
    return fresh.train(model.training)


def _plainly(model: Any, name: str) -> Any:
    """An attribute that an object has itself: wrappers may pass on any other."""
    own = getattr(model, "__dict__", {})
    return own.get(name, own.get("_modules", {}).get(name))


def _refuse_processed(model: Any) -> None:
    """Raises InputError for weights that were folded or centred: J is that of another function."""
    kinds = {kind.__name__ for kind in type(model).__mro__}
    processed = any(_plainly(model, name) is True for name in ("compatibility_mode", "_weights_processed"))
    if "HookedTransformer" in kinds or processed:
        what = "HookedTransformer" if "HookedTransformer" in kinds else f"{type(model).__name__} in compatibility mode"
        raise InputError(
            f"a {what} has other weights than the model it was made from: norms folded into them, and centred, so that J of "
            "its blocks is another one.\nGive the Hugging Face model itself, or a TransformerBridge as it is booted"
        )


def _may_differ(module: nn.Module) -> bool:
    """Whether train mode may change what a module computes: not in torch's own maps, norms and lists."""
    of_torch = type(module).__module__.startswith("torch.nn.")
    return not of_torch or isinstance(module, nn.modules.dropout._DropoutNd | nn.modules.batchnorm._NormBase)


def refuse_unusable(model: nn.Module) -> None:
    """Raises InputError for a model in train mode, quantised, or without numbers."""
    refuse_quantised(getattr(model, "config", None))
    if (coded := _coded(model)) is not None:
        raise InputError(f"the model has quantised weights ({coded}); load it without quantisation")
    training = next((name for name, module in model.named_modules() if module.training and _may_differ(module)), None)
    if training is not None:
        part = "" if model.training else f" in its {training}"
        raise InputError(f"the model is in train mode{part}, where dropout makes it random; call model.eval() first")
    if any(p.is_meta for p in model.parameters()):
        raise InputError(
            "the model's weights are on the meta device, where they have shapes but no numbers; load it onto cpu or cuda"
        )


def _coded(model: nn.Module) -> str | None:
    """Where weights are not plain floating numbers: which are held in another way, by a class of their own or in eight bits."""
    for module in model.modules():
        if ".quantized" in type(module).__module__:
            return type(module).__name__
    for name, weight in model.named_parameters():
        if not weight.is_floating_point():
            return f"{name} has integers, {weight.dtype}"
        if weight.dtype.itemsize == 1:
            return f"{name} is {weight.dtype}"
        if type(weight) not in PLAIN:
            return f"{name} is a {type(weight).__name__}"
    return None


def refuse_quantised(config: Any) -> None:
    """Raises InputError for a configuration of quantised weights."""
    method = getattr(config, "quantization_config", None)
    if method is not None:
        kind = method.get("quant_method", "?") if isinstance(method, dict) else type(method).__name__
        raise InputError(f"the model has quantised weights ({kind}); load one without quantisation")


# ---- adapters


def adapted(model: nn.Module) -> str:
    """The adapters inside of a model, in words; empty where it has none."""
    layers = list(_adapted_layers(model).values())
    if not layers:
        return ""
    names = sorted({name for layer in layers if not layer.disable_adapters for name in layer.active_adapters})
    known = getattr(model, "peft_config", {})
    said = [f"{name} ({_kind(known[name])})" if name in known else name for name in names]
    return f"adapted by {', '.join(said)}" if said else "its adapters disabled"


def applied(model: nn.Module) -> list[Any]:
    """How adapters are applied, beside what their weights say: where, which, whether at all, and times what."""
    return [
        [path, sorted(layer.active_adapters), layer.disable_adapters, sorted(getattr(layer, "scaling", {}).items())]
        for path, layer in sorted(_adapted_layers(model).items())
    ]


def _adapted_layers(model: nn.Module) -> dict[str, Any]:
    """The layers with adapters beside them, as peft makes them, by path."""
    return {
        path: module
        for path, module in model.named_modules()
        if hasattr(module, "base_layer") and hasattr(module, "active_adapters") and hasattr(module, "disable_adapters")
    }


def _kind(config: Any) -> str:
    """LORA and the like."""
    return str(getattr(config.peft_type, "value", config.peft_type))
