"""A name, a directory or a Hugging Face model -> a frozen model in one precision."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tightpass import doors
from tightpass.errors import DoesNotFitError, InputError, TightpassError
from tightpass.models import attention, gguf_files, gguf_models, gguf_tokens, packages
from tightpass.models.aligned import aligned
from tightpass.models.architecture import built, class_of, tower_of
from tightpass.models.families.base import FAMILIES, Family, family_of
from tightpass.models.files import TOKENIZERS, check_weights, fault, has_any, refuse_adapters
from tightpass.models.from_files import read_in_turn, read_whole
from tightpass.models.given import adapted, applied, is_given, refuse_quantised, refuse_unusable, unwrapped
from tightpass.models.invented import refuse_invented
from tightpass.models.names import nearest
from tightpass.models.parts import LayerParts, final_norm_of, parts_of
from tightpass.models.shape import Shape, shape_of_config, shape_of_parts
from tightpass.models.sizes import ALIASES, check_sizes, packaged_config
from tightpass.models.stored import DIGITS, check_stored, digits_in, files_of, refuse_bare
from tightpass.models.streamed import Streamed, kept_bytes, work_of_held
from tightpass.units import bytes_of, format_bytes

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
EXPECTED = (
    "expected a local directory, a Hub id such as openai-community/gpt2 (from the network, or its local cache), "
    "or one of `tightpass models`"
)


@dataclass(frozen=True)
class Model:
    """A model in eval mode, in one precision, on one device; never trained, never changed.

    streamed   how its weights are read, where they stay in the files
    notes      what is to be said of it, in words
    """

    name: str  # canonical: hub id, directory, "demo", or the class of a given model
    revision: str | None
    weights: str  # "pretrained" | "dequantised TYPES" | "random (seed N)" | "given"
    family: Family
    config: Any
    base: nn.Module
    tokenizer: Any | None
    streamed: Streamed | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        precision = str(self.dtype).removeprefix("torch.")
        return f"Model({self.name}, {self.weights}: {len(self.parts)} layers of width {self.shape.width}, {precision}, {self.device})"

    @cached_property
    def parts(self) -> tuple[LayerParts, ...]:
        """The modules of every layer."""
        return parts_of(self.base, self.family)

    @cached_property
    def shape(self) -> Shape:
        """Its sizes, from the modules."""
        return shape_of_parts(self.base, self.family, self.parts)

    @property
    def final_norm(self) -> nn.Module | None:
        return final_norm_of(self.base, self.family)

    @property
    def positions(self) -> int | None:
        """How many tokens it takes; None for no limit."""
        return self.shape.positions

    @property
    def vocabulary(self) -> int:
        """Token ids that the model has an embedding for: 0 .. vocabulary - 1."""
        embedding: Any = self.base.get_input_embeddings()  # type: ignore[operator]
        return int(getattr(embedding, "num_embeddings", self.config.vocab_size))

    @property
    def dtype(self) -> torch.dtype:
        return next(self.base.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return self.streamed.device if self.streamed is not None else next(self.base.parameters()).device

    def weights_hash(self) -> str:
        """SHA-256 over the architecture (activation, heads, norms, ...) and the bytes of every parameter that is used."""
        digest = hashlib.sha256(json.dumps(architecture(self.config), sort_keys=True, default=str).encode())
        if adapters := applied(self.base):
            digest.update(json.dumps(adapters).encode())
        for name, tensor in self._used():
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            for piece in self._pieces(name, tensor):
                digest.update(piece.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def pieces(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All that is used of its weights, by name, in stretches of rows where they are read from the files."""
        return ((name, piece) for name, tensor in self._used() for piece in self._pieces(name, tensor))

    def _used(self) -> list[tuple[str, torch.Tensor]]:
        held = sorted(self.base.state_dict().items())
        return [(name, tensor) for name, tensor in held if not name.startswith(self.family.unused)]

    def _pieces(self, name: str, tensor: torch.Tensor) -> Iterator[torch.Tensor]:
        return iter([tensor.detach()]) if self.streamed is None else self.streamed.pieces(name)

    def held(self, parts: LayerParts) -> LayerParts:
        """A layer with its weights at hand: itself, or read from the files."""
        return parts if self.streamed is None else self.streamed.held(parts)


def architecture(config: Any) -> dict[str, Any]:
    """A configuration without what does not define the numbers: names, places, versions."""
    return {key: value for key, value in config.to_dict().items() if key not in INCIDENTAL}


@dataclass(frozen=True)
class Source:
    """Where a name leads: what to hand to transformers, and what to call it.

    revision   of the package that it lies in, if it does
    """

    name: str
    location: str
    is_local: bool
    revision: str | None = None

    @property
    def gguf(self) -> gguf_files.GGUF | None:
        """The GGUF file, if it is one. Raises InputError for one that cannot be read."""
        return gguf_files.opened(Path(self.location)) if self.location.endswith(gguf_files.SUFFIX) else None

    @property
    def stored_as(self) -> str:
        """What its weights are called: pretrained, or dequantised from which types."""
        kinds = () if self.gguf is None else self.gguf.quantised
        return f"dequantised {', '.join(kinds)}" if kinds else "pretrained"

    @property
    def digits(self) -> int:
        """The binary digits that its weights were stored with, at most."""
        if self.gguf is not None:
            return DIGITS[torch.float32]
        return digits_in(Path(self.location)) if self.is_local else max(DIGITS.values())


def demo_directory() -> Path:
    """The bundled model."""
    return Path(str(resources.files("tightpass.models"))) / "demo"


def locate(name: str) -> Source:
    """Resolves an alias, a directory, a GGUF file or a Hub id. Raises InputError for none of them."""
    if not name.strip():
        raise InputError(
            "the model has no name; give one of `tightpass models`, a local directory, or a Hub id OWNER/NAME"
        )
    if name == "demo":
        return Source("demo", str(demo_directory()), is_local=True)
    if name in ALIASES:
        return Source(ALIASES[name], ALIASES[name], is_local=False)
    if name in packages.PACKAGES:
        return Source(name, str(packages.place(name)), is_local=True, revision=packages.installed(name))
    path = doors.path("the model", name)
    if path.is_dir():
        refuse_adapters(path)
        path = _inside(path)
        return Source(str(path.absolute()), str(path.absolute()), is_local=True)
    if path.is_file() and path.suffix == gguf_files.SUFFIX:
        return Source(str(path.absolute()), str(path.absolute()), is_local=True)
    owner, slash, rest = name.partition("/")
    if path.suffix == gguf_files.SUFFIX:
        raise InputError(f"unknown model {doors.shown(name)}: there is no file {path.absolute()}")
    if path.is_file():
        raise InputError(f"unknown model {doors.shown(name)}: that is a file; give the directory that it lies in")
    if slash and owner and rest and "/" not in rest and not name.startswith((".", "~")):
        return Source(name, name, is_local=False)
    if slash:
        raise InputError(f"unknown model {doors.shown(name)}: there is no directory {path.absolute()}\n{EXPECTED}")
    near = nearest(name)
    said = f"; nearest known names: {', '.join(near)}" if near else ""
    raise InputError(f"unknown model {doors.shown(name)}{said}\n{EXPECTED}")


def _inside(directory: Path) -> Path:
    """A directory in Hugging Face format as it is, or the GGUF file that it holds. Raises InputError where it has neither."""
    configured = (directory / "config.json").is_file()
    if configured and files_of(directory) is not None:
        return directory
    if (file := gguf_files.gguf_in(directory)) is not None:
        return file
    if configured:
        return directory
    raise InputError(
        f"{directory} is a directory without config.json; expected a model in Hugging Face format, or a GGUF file"
    )


def read_config(source: Source) -> Any:
    """The Hugging Face configuration, from the package where it is packaged."""
    packaged = packaged_config(source.name)
    return stored_config(source) if packaged is None else packaged


def stored_config(source: Source) -> Any:
    """The configuration that lies with the weights. Raises InputError if it cannot be read, or describes no model."""
    from transformers import AutoConfig

    with the_door(source):
        if source.gguf is not None:
            config = gguf_models.config_of(source.gguf)
        else:
            config = AutoConfig.from_pretrained(source.location, trust_remote_code=False)
        family_of(config)
        check_sizes(config, source.name)
        return plain(config)


PLAIN = {
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "chunk_size_feed_forward": 0,
    "_experts_implementation": "eager",
}
"""Fields that change what a forward pass returns, how often it calls a module, or in what kind of products; never the numbers."""


def plain(config: Any) -> Any:
    """The configuration, changed in place: results whole, by name and at once, with the attention that `attention_of` says."""
    for field, value in PLAIN.items():
        if hasattr(config, field):
            setattr(config, field, value)
    attention.register()
    config._attn_implementation = attention_of(config)
    return config


def attention_of(config: Any) -> str:
    """This package's attention, or the family's own where it takes no other."""
    family = family_of(config)
    return family.implementation if family.own_attention else attention.NAME


@contextmanager
def the_door(source: Source) -> Iterator[None]:
    """Whatever transformers raises while it reads a model becomes one InputError."""
    try:
        yield
    except (TightpassError, MemoryError):
        raise
    except Exception as error:  # it lets through what any of its parts raises: a dozen kinds, no common base
        raise _unreadable(source, error) from error


def _unreadable(source: Source, error: Exception) -> InputError:
    if source.is_local or not isinstance(error, OSError):
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if isinstance(error, KeyError):
            reason = f"{reason} is not known"
        return InputError(f"cannot read the model in {source.location}: {reason}{_faulty_files(source)}")
    known = source.name in ALIASES.values()
    return InputError(
        f"{source.name} is not in the local cache and cannot be fetched (no network, or no such model)"
        + ("" if known else f"; there is no directory {Path(source.name).absolute()} either")
        + ".\nWays on: --model DIR with a local copy; --weights random for an architecture of "
        "`tightpass models`; --model demo"
    )


def _faulty_files(source: Source) -> str:
    """Which of a local model's text files are something else altogether, in words."""
    if not source.is_local:
        return ""
    found = [(path, fault(path)) for path in sorted(Path(source.location).glob("*.json"))]
    return "".join(f"; {path.name} {what}" for path, what in found if what)


def check_dtype(dtype: Any) -> torch.dtype:
    """The torch dtype of a name. Raises InputError: half precision cannot carry a rank."""
    dtype = (dtype.__name__ if isinstance(dtype, type) else str(dtype)).removeprefix("torch.")
    if dtype in DTYPES:
        return DTYPES[dtype]
    reason = " (too coarse to tell a small singular value from noise)" if "16" in dtype else ""
    raise InputError(f"dtype must be float64 or float32, got {doors.shown(dtype)}{reason}")


def choose_device(device: Any) -> torch.device:
    """`auto` is the GPU where torch has one. Raises InputError for no device, and for one that torch does not see."""
    if not isinstance(device, str | torch.device):
        raise InputError(f"device must be auto, cpu or cuda[:N], got {doors.shown(device)}")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, ValueError):
        raise InputError(f"device must be auto, cpu or cuda[:N], got {doors.shown(device)}") from None
    if chosen.type not in ("cpu", "cuda"):
        raise InputError(f"device must be auto, cpu or cuda[:N], got {device!r}")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {device} asked for, but torch sees {torch.cuda.device_count()} GPUs; use --device cpu"
        )
    return chosen


def planned_shape(source: Source) -> Shape:
    """The sizes of a model that is not loaded: its architecture is built without numbers."""
    config = read_config(source)
    with the_door(source):
        return shape_of_config(config)


def load_model(
    model: Any,
    dtype: str | torch.dtype = "float64",
    device: str | torch.device = "auto",
    weights: str = "pretrained",
    seed: int = 0,
    memory: int | str | None = None,
) -> Model:
    """Loads a model for differentiation.

    model    an alias (`opt-125m`, `smollm2`), `demo`, a local directory, a GGUF file, a Hub id, or a
             loaded Hugging Face model, which is copied, never changed: with the adapters of peft in it, and out of a
             TransformerBridge or a wrapper of nnsight
    dtype    "float64" or "float32": the precision of weights, activations and Jacobian
    weights  "pretrained", or "random" to build the architecture with seeded random weights
    memory   what the weights may take, in bytes or such as "4GiB"; None for no limit. Of pretrained weights that do not fit, one
             layer at a time is read from the files

    Raises InputError for anything that cannot be loaded as asked, DoesNotFitError if `memory` does not
    suffice for the weights, or for a layer of them where they are read in turn.
    """
    torch_dtype, torch_device = check_dtype(dtype), choose_device(device)
    seed, limit = doors.seed(seed), bytes_of(memory)
    if not isinstance(weights, str) or weights not in WEIGHTS:
        raise InputError(f"weights must be one of {', '.join(WEIGHTS)}, got {doors.shown(weights)}")
    if is_given(model):
        return _adopt(check_given(model), torch_dtype, torch_device)
    source = _source(model)
    in_turn = limit is not None and not _fits(source, torch_dtype, weights, limit)
    return loaded(source, torch_dtype, torch_device, weights, seed, in_turn)


def loaded(source: Source, dtype: torch.dtype, device: torch.device, weights: str, seed: int, in_turn: bool) -> Model:
    """Likewise of what was located, all of it, or one layer at a time."""
    config = read_config(source) if weights == "random" else stored_config(source)
    refuse_quantised(config)
    turns = None
    if weights == "random":
        base, label = _random(source, plain(config), dtype, seed), f"random (seed {seed})"
    elif in_turn:
        with the_door(source):
            turns = read_in_turn(source.name, source.gguf or _directory(source), config, dtype, device)
        base, label = turns.base, source.stored_as
    else:
        base, label = _pretrained(source, config, dtype), source.stored_as
    revision = source.revision or getattr(base.config, "_commit_hash", None)
    tokenizer = _tokenizer(source, config, offline=weights == "random")
    return Model(
        name=source.name,
        revision=None if weights == "random" else revision,
        weights=label,
        family=family_of(config),
        config=base.config,
        base=base if in_turn else _freeze(base, device),
        tokenizer=tokenizer,
        streamed=turns,
        notes=tuple(_notes(source, label, in_turn, tokenizer)),
    )


def _fits(source: Source, dtype: torch.dtype, weights: str, limit: int) -> bool:
    """Whether all weights fit into so many bytes. Raises DoesNotFitError where not even a layer of them would."""
    shape = planned_shape(source) if weights == "random" else _stored_shape(source)
    needed = shape.parameters * dtype.itemsize
    if needed <= limit:
        return True
    least = kept_bytes(shape, 1, dtype.itemsize) + work_of_held(shape, dtype.itemsize).peak
    in_turn = weights == "pretrained" and _can_be_read_in_turn(family_of(stored_config(source)))
    if in_turn and least <= limit:
        return False
    turns = f", and {format_bytes(least)} a layer at a time" if in_turn else ""
    smallest = -(-min(needed, least if turns else needed) // 2**20)
    raise DoesNotFitError(
        f"the weights of {source.name} in {str(dtype).removeprefix('torch.')} take {format_bytes(needed)}{turns}, "
        f"--memory allows {format_bytes(limit)}; smallest that fits them: {smallest}MiB"
    )


def _can_be_read_in_turn(family: Family) -> bool:
    """Not where the base model is but a part of what the files hold."""
    return not family.tower and family.model_class is None


def _stored_shape(source: Source) -> Shape:
    config = stored_config(source)
    with the_door(source):
        return shape_of_config(config)


def _notes(source: Source, label: str, in_turn: bool, tokenizer: Any | None) -> Iterator[str]:
    """What is to be said of a model's weights and tokens, in words."""
    if label.startswith("dequantised"):
        yield f"the weights of {source.name} are {label}: numbers are those of the quantised model, not of the one before"
    if in_turn:
        yield f"{source.name} does not fit into memory: its layers are read from the files one at a time"
    if source.gguf is not None and tokenizer is None and (why := gguf_tokens.untold(source.gguf)) is not None:
        yield f"{source.name}: {why}"


def _source(model: Any) -> Source:
    """Of a name, a directory, or what was located before."""
    if isinstance(model, Source):
        return model
    if isinstance(model, str | Path):
        return locate(str(model))
    raise InputError(f"model must be a name, a directory or a Hugging Face model, got {type(model).__name__}")


def _pretrained(source: Source, config: Any, dtype: torch.dtype) -> nn.Module:
    if source.gguf is not None:
        with the_door(source):
            return read_whole(source.name, source.gguf, config, dtype)
    if source.is_local:
        refuse_bare(Path(source.location))
        check_weights(Path(source.location))
        check_stored(Path(source.location))
    family = family_of(config)
    with the_door(source), quiet():
        base, found = class_of(family).from_pretrained(
            source.location,
            config=config,
            dtype=dtype,
            attn_implementation=attention_of(config),
            trust_remote_code=False,
            use_safetensors=not _pickled(source),
            weights_only=True,
            ignore_mismatched_sizes=True,  # they come back in `found`, and are refused by name
            output_loading_info=True,
        )
    refuse_invented(source.name, family, found)
    return tower_of(base, family)


def _pickled(source: Source) -> bool:
    """Whether a local model has no weights but in files of `torch.save`."""
    found = files_of(Path(source.location)) if source.is_local else None
    return found is not None and found[0] == "pickles"


def _directory(source: Source) -> Path:
    """Where a model's files lie, fetched where need be."""
    from huggingface_hub import snapshot_download

    if source.is_local:
        return Path(source.location)
    return Path(snapshot_download(source.location, allow_patterns=["*.safetensors", "*.safetensors.index.json"]))


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and the advice of transformers, which are left as they were: what is wrong with a file is said
    in an error of our own."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def _random(source: Source, config: Any, dtype: torch.dtype, seed: int) -> nn.Module:
    with the_door(source), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return built(config, dtype=dtype, attn_implementation=attention_of(config))


def check_given(model: Any) -> nn.Module:
    """The Hugging Face model that a caller has handed in, out of its wrapper. Raises InputError for what is none, of no known
    family, in train mode, quantised or without numbers."""
    given = unwrapped(model)
    config = getattr(given, "config", None)
    if config is None or not hasattr(given, "base_model"):
        raise InputError(f"expected a Hugging Face model, got {type(given).__name__}")
    refuse_unusable(given)
    family_of(config, model="model")
    return given


def _adopt(given: nn.Module, dtype: torch.dtype, device: torch.device) -> Model:
    """A copy of a model that the caller has loaded."""
    path, words = str(given.config.name_or_path or ""), adapted(given)  # type: ignore[union-attr]
    family, whole = family_of(given.config), given.base_model
    assert isinstance(whole, nn.Module)
    base: Any = copy.deepcopy(tower_of(whole, family))
    base.to(dtype)
    for module in base.modules():
        if hasattr(getattr(module, "config", None), "_attn_implementation"):
            plain(module.config)  # each its own: copied layers do not share the model's
        if hasattr(module, "chunk_size_feed_forward"):
            module.chunk_size_feed_forward = 0
    return Model(
        name=path or type(given).__name__,
        revision=getattr(base.config, "_commit_hash", None),
        weights=f"given, {words}" if words else "given",
        family=family,
        config=base.config,
        base=_freeze(base, device),
        tokenizer=tokenizer_at(path, base.config),
    )


def tokenizer_given(given: Any) -> Any | None:
    """The tokenizer of a model that the caller has loaded, from where its configuration says that it came from."""
    return tokenizer_at(str(given.config.name_or_path or ""), given.config)


def tokenizer_of(source: Source, offline: bool) -> Any | None:
    """The tokenizer of a model that is not loaded, or None if it has none. Raises InputError for one that cannot be read."""
    return _tokenizer(source, read_config(source), offline)


def tokenizer_at(path: str, config: Any) -> Any | None:
    """The tokenizer in a directory, if there is one and the model reads text. Raises InputError for one that cannot be read."""
    return _tokenizer(Source(path, path, is_local=True), config, offline=True) if path else None


def _freeze(base: nn.Module, device: torch.device) -> nn.Module:
    family_of(base.config).prepare(base)
    return aligned(base.to(device).eval().requires_grad_(False))


def _tokenizer(source: Source, config: Any, offline: bool) -> Any | None:
    """The model's tokenizer, or None if it has none, or reads no text. Raises InputError for one that cannot be read."""
    family = FAMILIES.get(config.model_type)
    if family is not None and family.reads(config) is not None:
        return None
    from transformers import AutoTokenizer

    if source.gguf is not None:
        return gguf_tokens.tokenizer_of(source.gguf)
    directory = Path(source.location)
    if directory.is_dir() and not has_any(directory, TOKENIZERS):
        return None  # transformers would make up an empty one
    try:
        return AutoTokenizer.from_pretrained(
            source.location, trust_remote_code=False, local_files_only=offline or source.is_local
        )
    except Exception as error:
        if not directory.is_dir() and isinstance(error, (OSError, ValueError)):
            return None
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"cannot read the tokenizer in {source.location} ({', '.join(has_any(directory, TOKENIZERS))}): "
            f"{reason}{_faulty_files(source)}.\nRepair it, or move its files away to run on seeded token ids"
        ) from error
