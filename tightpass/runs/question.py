"""One question, as flags, YAML keys and Python keywords at once."""

from __future__ import annotations

import re
from numbers import Integral
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tightpass import doors, text
from tightpass.errors import InputError
from tightpass.models.options import check_layer, counted

PYTHON_ONLY = frozenset({"token_ids"})
"""Fields that are no flags of the command."""
SETTINGS = frozenset({"device", "threads", "memory", "out", "discard_jacobian"})
"""Fields that change where or how a question is answered, not the question."""


EXPECTED = {
    "int_type": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_from_float": "expected a whole number",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "string_type": "expected text",
}
"""What is said of a value that does not fit, by the validator's name for it; else its own words."""


class _EachOnce(yaml.SafeLoader):
    """YAML in which no option stands twice, where the last one would win in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class Config(BaseModel):
    """Every option of `run` and `plan`, with its default; the descriptions are the help texts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field("demo", description="demo, an alias such as opt-125m, a local directory, or a Hub id")
    block: str = Field("mlp", description="mlp, attn, head, layer or model")
    tokens: int | None = Field(
        None,
        description="positions, special tokens included; if left out, all of a given text, 64 of the bundled one and of prompts, "
        "the patches of an image",
    )
    layers: str = Field("all", description="all, or a list such as 0-3,7; -1 is the last")
    head: int | None = Field(None, description="one head (block head only); all heads if left out")
    text: str | None = Field(None, description="the text; a bundled one if left out")
    text_file: str | None = Field(None, description="a file with the text, - for standard input")
    token_ids: list[int] | None = Field(None, description="token ids in place of a text")
    image: str | None = Field(None, description="a file with an image, for a model that reads images")
    prompts: str | list[str] | None = Field(
        None, description="a file of prompts, one a line: a run for each, and how the measures spread over them"
    )
    norm: bool = Field(True, description="include the pre-norm that the block reads through")
    residual: bool = Field(False, description="add the identity on x to mlp, attn or head")
    special: bool = Field(True, description="let the tokenizer add its special tokens")
    dtype: str = Field("float64", description="float64 or float32")
    device: str = Field("auto", description="auto, cpu or cuda[:N]")
    threads: int | None = Field(None, description="threads to use; all cores if left out")
    method: str = Field(
        "auto", description="auto or exact: all singular values; topk: the leading ones, without forming J"
    )
    k: int | None = Field(None, description="singular values that method topk finds; 64 if left out")
    vectors: int = Field(0, description="leading singular vectors to keep")
    memory: str | None = Field(
        None, description="memory to stay within, such as 4GiB; 60 % of what is free if left out"
    )
    out: str | None = Field(None, description="directory of the run; runs/MODEL-BLOCK-tTOKENS if left out")
    weights: str = Field("pretrained", description="pretrained or random")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of random weights and token ids")
    discard_jacobian: bool = Field(False, description="keep the spectra, not the Jacobians")

    @field_validator("layers", "memory", "out", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        """Natural Python and YAML values of what is text on the command line."""
        if hasattr(value, "tolist"):  # a number or an array of NumPy or torch
            try:
                value = value.tolist()
            except Exception:  # of sparse, quantised and meta tensors: a kind each
                raise ValueError("expected text, a number or a list of numbers") from None
        if isinstance(value, list | tuple | range):
            return ",".join(str(item) for item in value)
        return str(value) if isinstance(value, int | Path) and not isinstance(value, bool) else value

    @field_validator("model", "text_file", "image", "prompts", mode="before")
    @classmethod
    def _of_a_path(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @field_validator("tokens", "head", "threads", "k", "vectors", "seed", mode="before")
    @classmethod
    def _no_truth_values(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("expected a number")
        return int(value) if isinstance(value, Integral) else value  # NumPy's integers too

    @field_validator("token_ids", mode="before")
    @classmethod
    def _whole_numbers(cls, value: Any) -> Any:
        """Of Python, NumPy or torch."""
        try:
            listed = value.tolist() if hasattr(value, "tolist") else value
        except (RuntimeError, TypeError) as error:  # a tensor without numbers of its own, such as a sparse one
            raise ValueError("expected a list of integers") from error
        if listed is None:
            return None
        if not isinstance(listed, list | tuple | range) or not all(
            isinstance(i, Integral) and not isinstance(i, bool) for i in listed
        ):
            raise ValueError("expected a list of integers")
        return [int(i) for i in listed]

    def __init__(self, **options: Any) -> None:
        """Raises InputError, naming the option, for what does not fit."""
        try:
            super().__init__(**options)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden":
                raise InputError(f"unknown option {name!r}; known: {', '.join(type(self).model_fields)}") from None
            expected = EXPECTED.get(first["type"], str(first["msg"]).lower())
            raise InputError(f"{name}: {expected}, got {doors.shown(first['input'])}") from None
        for name, value in self:
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, str):
                    text.check(item, name)

    @classmethod
    def of(cls, **options: Any) -> Config:
        """A config from keywords. Raises InputError, naming the option, for what does not fit."""
        return cls(**options)

    @classmethod
    def read(cls, path: str | Path, **overrides: Any) -> Config:
        """A config from a YAML file, keywords winning over it. Raises InputError if it cannot be read, or holds no options."""
        try:
            content = yaml.load(text.read(path), _EachOnce)
        except yaml.YAMLError as error:
            mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
            where = f" (line {mark.line + 1})" if mark is not None else ""
            hint = "; YAML indents by spaces, not tabs" if "\\t" in str(problem) else ""
            raise InputError(
                f"cannot read {path} as YAML{where}: {problem or str(error).splitlines()[0]}{hint}"
            ) from None
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            raise InputError(f"{path} must hold options, one per line, such as `model: demo`")
        try:
            cls.of(**content)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        return cls.of(**{**content, **overrides})

    def directory(self) -> Path:
        """Where the run goes."""
        if self.out is not None:
            return doors.path("out", self.out)
        name = re.sub(r"[^\w.-]+", "-", self.model.rstrip("/").rsplit("/", 1)[-1]).strip("-") or "model"
        return Path("runs") / f"{name}-{self.block}-t{self.length}"

    @property
    def length(self) -> int:
        """How many tokens there are, of a question that is resolved."""
        assert self.tokens is not None, "check.resolve says how many tokens a text has"
        return self.tokens

    @property
    def forms_jacobian(self) -> bool:
        """Whether blocks are computed, stored and decomposed, and not only products with them."""
        return self.method != "topk"

    @property
    def keeps_jacobian(self) -> bool:
        """Whether shards are left in the directory."""
        return self.forms_jacobian and not self.discard_jacobian

    def question(self) -> dict[str, Any]:
        """The fields that define the answer."""
        return {k: v for k, v in self.model_dump().items() if k not in SETTINGS}


def parse_layers(layers: str, count: int) -> list[int]:
    """ "all" or "0-3,7" -> layer numbers, sorted; negative ones count from the end. Raises InputError for what is out of range."""
    if layers.strip() == "all":
        return list(range(count))
    chosen: set[int] = set()
    for part in layers.split(","):
        match = re.fullmatch(r"\s*(-?\d+)\s*(?:-\s*(-?\d+)\s*)?", part)
        if not match:
            raise InputError(f"layers must be all, or a list such as 0-3,7; got {layers!r}")
        first, last = (counted(int(number), count) for number in (match[1], match[2] or match[1]))
        if last < first:
            raise InputError(f"a range of layers runs upwards, got {part.strip()}; write {last}-{first}")
        check_layer(last, count, part.strip())
        chosen.update(range(first, last + 1))
    return sorted(chosen)
