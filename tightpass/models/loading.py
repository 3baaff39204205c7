"""A name, a directory or a Hugging Face model -> a frozen model in one precision."""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tightpass.errors import DoesNotFitError, InputError
from tightpass.models import attention
from tightpass.models.families import Family, family_of, submodule
from tightpass.models.sizes import ALIASES, packaged_config

os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")  # no background thread for .bin files

DTYPES = {"float64": torch.float64, "float32": torch.float32}
INCIDENTAL = {
    "_name_or_path",
    "name_or_path",
    "_commit_hash",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
WEIGHTS = ("pretrained", "random")


@dataclass(frozen=True)
class Model:
    """A model in eval mode, in one precision, on one device; never trained, never changed."""

    name: str  # canonical: hub id, directory, "demo", or the class of a given model
    revision: str | None
    weights: str  # "pretrained" | "random (seed N)" | "given"
    family: Family
    config: Any
    base: nn.Module
    tokenizer: Any | None

    @property
    def layers(self) -> nn.ModuleList:
        layers = submodule(self.base, self.family.layers)
        assert isinstance(layers, nn.ModuleList)
        return layers

    @property
    def final_norm(self) -> nn.Module | None:
        if self.family.final_norm is None:
            return None
        parent, _, name = self.family.final_norm.rpartition(".")
        return getattr(submodule(self.base, parent), name)  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        return next(self.base.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.base.parameters()).device

    def weights_hash(self) -> str:
        """SHA-256 over the architecture (activation, heads, norms, ...) and every parameter's bytes."""
        digest = hashlib.sha256(json.dumps(architecture(self.config), sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.base.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()


def architecture(config: Any) -> dict[str, Any]:
    """A configuration without what does not define the numbers: names, places, versions."""
    return {key: value for key, value in config.to_dict().items() if key not in INCIDENTAL}


@dataclass(frozen=True)
class Source:
    """Where a name leads: what to hand to transformers, and what to call it."""

    name: str
    location: str
    is_local: bool


def demo_directory() -> Path:
    """The bundled model."""
    return Path(str(resources.files("tightpass.models"))) / "demo"


def locate(name: str) -> Source:
    """Resolves an alias, a directory or a Hub id. Raises InputError for none of them."""
    if name == "demo":
        return Source("demo", str(demo_directory()), is_local=True)
    if name in ALIASES:
        return Source(ALIASES[name], ALIASES[name], is_local=False)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"{name} is a directory without config.json; expected a model in Hugging Face format")
        return Source(str(path.absolute()), str(path.absolute()), is_local=True)
    owner, slash, rest = name.partition("/")
    if slash and owner and rest and "/" not in rest and not name.startswith((".", "~")):
        return Source(name, name, is_local=False)
    known = ["demo", *ALIASES]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:4]
    raise InputError(
        f"unknown model {name!r}; nearest known names: {', '.join(near)}\n"
        "expected one of `tightpass models`, a local directory, or a Hub id OWNER/NAME"
    )


def read_config(source: Source) -> Any:
    """The Hugging Face configuration, from the package where it is packaged."""
    packaged = packaged_config(source.name)
    if packaged is not None:
        return packaged
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source.location, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _unreachable(source, error) from error


def _unreachable(source: Source, error: Exception) -> InputError:
    if source.is_local:
        return InputError(f"cannot read the model in {source.location}: {_first_line(error)}")
    return InputError(
        f"{source.name} is not in the local cache and cannot be fetched (no network, or no such model).\n"
        "Ways on: --model DIR with a local copy; --weights random for an architecture of "
        "`tightpass models`; --model demo"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def check_dtype(dtype: str) -> torch.dtype:
    """The torch dtype of a name. Raises InputError: half precision cannot carry a rank."""
    dtype = str(dtype).removeprefix("torch.")
    if dtype in DTYPES:
        return DTYPES[dtype]
    reason = " (too coarse to tell a small singular value from noise)" if "16" in dtype else ""
    raise InputError(f"dtype must be float64 or float32, got {dtype!r}{reason}")


def choose_device(device: str) -> torch.device:
    """`auto` is the GPU where torch has one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise InputError(f"device must be auto, cpu or cuda[:N], got {device!r}") from None
    if chosen.type not in ("cpu", "cuda"):
        raise InputError(f"device must be auto, cpu or cuda[:N], got {device!r}")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {device} asked for, but torch sees {torch.cuda.device_count()} GPUs; use --device cpu"
        )
    return chosen


def parameter_count(config: Any) -> int:
    """Number of parameters of the base model, from shapes alone."""
    from transformers import AutoModel

    with torch.device("meta"):
        return sum(p.numel() for p in AutoModel.from_config(config).parameters())


def load_model(
    model: Any,
    dtype: str = "float64",
    device: str = "auto",
    weights: str = "pretrained",
    seed: int = 0,
    memory: int | None = None,
) -> Model:
    """Loads a model for differentiation.

    model    an alias (`opt-125m`), `demo`, a local directory, a Hub id, or a loaded Hugging
             Face model, which is copied, never changed
    dtype    "float64" or "float32": the precision of weights, activations and Jacobian
    weights  "pretrained", or "random" to build the architecture with seeded random weights
    memory   bytes that the weights may take; None for no limit

    Raises InputError for anything that cannot be loaded as asked, DoesNotFitError if the
    weights alone exceed `memory`.
    """
    torch_dtype, torch_device = check_dtype(dtype), choose_device(device)
    if weights not in WEIGHTS:
        raise InputError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
    attention.register()
    if isinstance(model, nn.Module):
        return _adopt(model, torch_dtype, torch_device)
    if not isinstance(model, str):
        raise InputError(f"model must be a name, a directory or a Hugging Face model, got {type(model).__name__}")
    source = locate(model)
    config = read_config(source)
    family = family_of(config)
    _refuse_quantised(config)
    if memory is not None:
        needed = parameter_count(config) * torch_dtype.itemsize
        if needed > memory:
            raise DoesNotFitError(
                f"the weights of {source.name} in {dtype} take {needed / 2**30:.1f} GiB, "
                f"--memory allows {memory / 2**30:.1f} GiB; smallest that fits them: {-(-needed // 2**30)}GiB"
            )
    if weights == "random":
        base, label = _random(config, torch_dtype, seed), f"random (seed {seed})"
    else:
        base, label = _pretrained(source, torch_dtype), "pretrained"
    return Model(
        name=source.name,
        revision=None if weights == "random" else getattr(base.config, "_commit_hash", None),
        weights=label,
        family=family,
        config=base.config,
        base=_freeze(base, torch_device),
        tokenizer=_tokenizer(source, offline=weights == "random"),
    )


def _pretrained(source: Source, dtype: torch.dtype) -> nn.Module:
    from transformers import AutoModel

    try:
        with quiet():
            return AutoModel.from_pretrained(  # type: ignore[no-any-return]
                source.location,
                dtype=dtype,
                attn_implementation=attention.NAME,
                trust_remote_code=False,
                use_safetensors=True,
            )
    except (OSError, ValueError) as error:
        raise _unreachable(source, error) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars of transformers, which are left as they were."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _random(config: Any, dtype: torch.dtype, seed: int) -> nn.Module:
    from transformers import AutoModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModel.from_config(config, dtype=dtype, attn_implementation=attention.NAME)  # type: ignore[no-any-return]


def _adopt(given: nn.Module, dtype: torch.dtype, device: torch.device) -> Model:
    """A copy of a model that the caller has loaded."""
    config = getattr(given, "config", None)
    if config is None or not hasattr(given, "base_model"):
        raise InputError(f"expected a Hugging Face model, got {type(given).__name__}")
    if given.training:
        raise InputError("the model is in train mode, where dropout makes it random; call model.eval() first")
    _refuse_quantised(config)
    floating = [p for p in given.parameters() if p.is_floating_point()]
    if len(floating) < len(list(given.parameters())) or not floating:
        raise InputError("the model has quantised (integer) weights; load it without quantisation")
    family = family_of(config)
    path = str(config.name_or_path or "")
    base: Any = copy.deepcopy(given.base_model)
    base.to(dtype).set_attn_implementation(attention.NAME)
    return Model(
        name=path or type(given).__name__,
        revision=getattr(config, "_commit_hash", None),
        weights="given",
        family=family,
        config=base.config,
        base=_freeze(base, device),
        tokenizer=_tokenizer(Source(path, path, is_local=True), offline=True) if path else None,
    )


def _refuse_quantised(config: Any) -> None:
    method = getattr(config, "quantization_config", None)
    if method is not None:
        kind = method.get("quant_method", "?") if isinstance(method, dict) else type(method).__name__
        raise InputError(f"the model has quantised weights ({kind}); load one without quantisation")


def _freeze(base: nn.Module, device: torch.device) -> nn.Module:
    return base.to(device).eval().requires_grad_(False)


def _tokenizer(source: Source, offline: bool) -> Any | None:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            source.location, trust_remote_code=False, local_files_only=offline or source.is_local
        )
    except (OSError, ValueError):
        return None
