"""What is wrong with a model's files, in words: adapters, Git LFS pointers, truncated downloads."""

from __future__ import annotations

import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from tightpass.errors import InputError

ADAPTERS = ("adapter_config.json", "adapter_model.*")
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt")
INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64")


def has_any(directory: Path, patterns: tuple[str, ...]) -> list[str]:
    """Names of the files in a directory that match."""
    return sorted(path.name for pattern in patterns for path in directory.glob(pattern))


def refuse_adapters(directory: Path) -> None:
    """Raises InputError for adapter files, which would change the model and are not applied here."""
    names = has_any(directory, ADAPTERS)
    if names:
        only = "" if (directory / "config.json").is_file() else ", and no full model"
        raise InputError(
            f"{directory} holds an adapter ({', '.join(names)}){only}; adapters in files are not applied.\n"
            "Merge it into its base model, save the result and give that (or move the files away to use the model without)"
        )


def check_weights(directory: Path) -> None:
    """Raises InputError, naming the file, for weights that are no whole safetensors file of floating numbers."""
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                kinds = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"{path} {fault(path) or f'cannot be read ({error})'}; fetch it again") from error
        integer = [key for key, kind in kinds.items() if kind in INTEGERS and key.endswith(("weight", "bias"))]
        if integer:
            raise InputError(
                f"{path} has quantised (integer) weights, such as {integer[0]}; give the model before quantisation"
            )


def fault(path: Path) -> str | None:
    """What a file is instead of what its name says; None if it only cannot be read."""
    with path.open("rb") as file:
        start = file.read(200)
    if not start:
        return "is empty"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself (`git lfs pull` fetches it)"
    if start.lstrip()[:1] == b"<":
        return "is a web page, not the file itself"
    if start.startswith(b"\xef\xbb\xbf") and path.suffix == ".json":
        return "starts with a byte order mark, which JSON does not have; save it as UTF-8 without one"
    if path.name == "config.json" and start.lstrip()[:1] != b"{":
        return "holds something else than the named fields of a model, {...}"
    cut = start.startswith(b"PK") and not zipfile.is_zipfile(path)  # torch.save writes archives, whose index comes last
    return "is truncated or damaged" if cut or path.suffix == ".safetensors" else None
