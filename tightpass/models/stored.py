"""Weights in files, read one at a time: safetensors and pickles of torch, sharded or not."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from tightpass.errors import InputError
from tightpass.models.files import fault

FORMATS = {"safetensors": "model.safetensors", "pickles": "pytorch_model.bin"}
"""What files of weights are called, the safe kind first."""
INDEX = ".index.json"
NAMED = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
"""Precisions as safetensors calls them."""

DIGITS = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24, torch.float64: 53}
"""Binary digits of a number."""


class Stored(Protocol):
    """Weights by the names that they have in files.

    shapes, dtypes   of all of them, from the files' headers
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: set[torch.dtype]

    def read(self, name: str, rows: Sequence[int] | None = None) -> torch.Tensor:
        """One of them as it is stored, or some of its rows."""
        ...


class Safetensors:
    """Weights in safetensors files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.places: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: set[torch.dtype] = set()
        for path in paths:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    self.places[name] = path
                    part = file.get_slice(name)
                    self.shapes[name] = tuple(part.get_shape())
                    self.dtypes.add(NAMED.get(part.get_dtype(), torch.float64))

    def read(self, name: str, rows: Sequence[int] | None = None) -> torch.Tensor:
        """Opens the file anew, so that no more of it stays in memory than what was read."""
        with safe_open(self.places[name], "pt") as file:
            return _some(file.get_slice(name), rows)


class Pickled:
    """Weights in files of `torch.save`, of which nothing but tensors is unpickled."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.places = {name: path for path in paths for name in unpickled(path)}
        self.shapes = {name: tuple(t.shape) for path in paths for name, t in unpickled(path).items()}
        self.dtypes = {t.dtype for path in paths for t in unpickled(path).values()}

    def read(self, name: str, rows: Sequence[int] | None = None) -> torch.Tensor:
        """Maps the file anew, likewise."""
        return _some(unpickled(self.places[name])[name], rows)


def unpickled(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file of `torch.save`, mapped and not read. Raises InputError for one that holds anything else."""
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever bytes that are no pickle of tensors make it raise
        if what := fault(path):
            raise InputError(f"{path} {what}; fetch it again") from error
        raise InputError(_no_weights(path, _reason(error))) from error
    if not isinstance(held, dict) or not all(isinstance(value, torch.Tensor) for value in held.values()):
        raise InputError(_no_weights(path, f"it holds a {type(held).__name__} of other things"))
    return held


def _no_weights(path: Path, why: str) -> str:
    return (
        f"{path} is no file of weights alone ({why}).\n"
        "It was not opened any further, since a pickle may do anything; save the weights as safetensors"
    )


def _reason(error: Exception) -> str:
    said = " ".join(str(error).split())
    if "Unsupported global" in said or "WeightsUnpickler error" in said or "Weights only load failed" in said:
        return "it holds objects besides tensors"
    return f"{type(error).__name__}: {said[:80]}"


def _some(tensor: Any, rows: Sequence[int] | None) -> torch.Tensor:
    """Some rows of a tensor, or of a slice of safetensors."""
    if rows is None:
        whole: torch.Tensor = tensor[...]
        return whole
    return torch.cat([tensor[first:last] for first, last in spans(rows)])


def spans(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Rows as stretches of neighbours, first and one after the last: of a range in one."""
    if isinstance(rows, range):
        yield rows.start, rows.stop
    else:
        yield from ((row, row + 1) for row in rows)


def files_of(directory: Path) -> tuple[str, list[Path]] | None:
    """The format of a directory's weights, and their files: one, or those that an index names; None where there are none.

    Raises InputError for an index that cannot be read, or names files that are not there.
    """
    for kind, name in FORMATS.items():
        if (directory / name).is_file():
            return kind, [directory / name]
        if (directory / (name + INDEX)).is_file():
            return kind, _indexed(directory / (name + INDEX))
    return None


def refuse_bare(directory: Path) -> None:
    """Raises InputError for a directory without weights."""
    if files_of(directory) is None:
        raise InputError(
            f"{directory} has a configuration and no weights ({' or '.join(FORMATS.values())}, or an {INDEX.lstrip('.')} of them); "
            "fetch them too, or take --weights random for the architecture alone"
        )


def _indexed(index: Path) -> list[Path]:
    """The files that an index names."""
    try:
        named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        paths = [index.parent / name for name in named]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} is no index of weights ({type(error).__name__}: {error}); fetch it again") from error
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(f"{index} names files that are not there: {', '.join(missing[:3])}{more}; fetch them too")
    return paths


def check_stored(directory: Path) -> None:
    """Raises InputError, naming the file, for an index without its files, and for pickles of anything but weights."""
    found = files_of(directory)
    if found is not None and found[0] == "pickles":
        for path in found[1]:
            unpickled(path)


def stored_in(directory: Path) -> Stored:
    """The weights of a directory in Hugging Face format. Raises InputError for files that cannot be read."""
    found = files_of(directory)
    if found is None:
        raise InputError(
            f"{directory} has no weights: expected {' or '.join(FORMATS.values())}, or an index of several"
        )
    kind, paths = found
    return Safetensors(paths) if kind == "safetensors" else Pickled(paths)


def digits_in(directory: Path) -> int:
    """The most binary digits that a number in a directory's files has; of float64 where there are none that can be read."""
    try:
        known = set() if files_of(directory) is None else stored_in(directory).dtypes
    except (SafetensorError, OSError, ValueError):  # said in words when it is loaded
        known = set()
    return max((DIGITS.get(dtype, 0) for dtype in known), default=0) or max(DIGITS.values())


class Named:
    """Stored weights by a model's own names: the files may have them behind the prefix of a larger model."""

    def __init__(self, stored: Stored, keys: Collection[str], prefix: str) -> None:
        self.stored = stored
        self.names = {key: name for name in stored.shapes if (key := _key(name, prefix)) in keys}
        self.shapes = {key: stored.shapes[name] for key, name in self.names.items()}
        self.beyond = sorted(set(stored.shapes) - set(self.names.values()))

    def read(self, key: str, rows: Sequence[int] | None = None) -> torch.Tensor:
        """One of them, or some of its rows, as it is stored."""
        return self.stored.read(self.names[key], rows)


OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""Ends of names as they were in files of before."""


def _key(name: str, prefix: str) -> str:
    """What a base model calls a weight that files call so."""
    for old, new in OLD.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return name.removeprefix(f"{prefix}.")
