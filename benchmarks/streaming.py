"""One layer of a model of OPT-2.7B's shape, 5.3 GB of float16 on disk, within 3 GiB of memory.

    python benchmarks/streaming.py [FOLDER]

Random weights are written to FOLDER (a temporary one if left out) in six safetensors files, and deleted in the end. Each question
is asked as a user asks it, with `--memory 3GiB`: seconds, peak memory of the process (pages of mapped files counted), and what
`plan` said.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import save, table
from safetensors.torch import save_file
from transformers import AutoModel

from tightpass.models.sizes import opt_config

ALLOWED = "3GiB"
FILES = 6
QUESTIONS = [
    f"--block {block} --layers {layer} --tokens {tokens} --dtype {dtype}"
    for block, layer, tokens, dtype in (
        ("mlp", 0, 4, "float64"),
        ("mlp", 31, 4, "float64"),
        ("mlp", 15, 34, "float32"),
        ("attn", 15, 2, "float64"),
        ("attn", 15, 4, "float32"),
    )
]


def write(folder: Path) -> int:
    """A model of that shape in float16, file by file; returns its bytes."""
    config = opt_config("2.7b")
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in AutoModel.from_config(config).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    index: dict[str, str] = {}
    for number, names in enumerate(parts(shapes), start=1):
        file = f"model-{number:05}-of-{FILES:05}.safetensors"
        save_file({name: drawn(name, shapes[name], generator) for name in names}, folder / file)
        index |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config.save_pretrained(folder)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def parts(shapes: dict[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """The names in as many parts of about one size."""
    names = list(shapes)
    for number in range(FILES):
        yield names[number * len(names) // FILES : (number + 1) * len(names) // FILES]


def drawn(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """As OPT's are before training: matrices of spread 0.02, norms at one, biases at nought."""
    if len(shape) == 1:
        return torch.full(shape, float("norm.weight" in name), dtype=torch.float16)
    return torch.empty(shape).normal_(0, 0.02, generator=generator).half()


def case(question: str, model: Path, folder: str) -> dict[str, Any]:
    """Measured and planned."""
    command = str(Path(sys.executable).with_name("tightpass"))
    asked = ["--model", str(model), *question.split(), "--memory", ALLOWED, "--out", f"{folder}/run-{time.time_ns()}"]
    planned = subprocess.run([command, "plan", *asked, "--json"], capture_output=True, text=True, check=True).stdout
    start = time.perf_counter()
    process = subprocess.Popen([command, "run", *asked, "--discard-jacobian"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise RuntimeError(said)
    plan = json.loads(planned)
    assert plan["in_turn"], "it was read whole"
    found = {"question": question, "seconds": seconds, "peak_bytes": usage.ru_maxrss * 1024}
    found["planned_bytes"] = plan["memory"]
    print(json.dumps(found), flush=True)
    return found


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if sys.argv[1:] else None) as folder:
        model = Path(folder) / "opt-2.7b-shape"
        model.mkdir()
        stored = write(model)
        cases = [case(question, model, folder) for question in QUESTIONS]
    rows = [
        [c["question"], f"{c['seconds']:.0f}", f"{c['peak_bytes'] / 2**30:.2f}", f"{c['planned_bytes'] / 2**30:.2f}"]
        for c in cases
    ]
    print(table(["question", "seconds", "peak, GiB", "planned, GiB"], rows))
    save("streaming", {"stored_bytes": stored, "allowed": ALLOWED, "cases": cases})


if __name__ == "__main__":
    main()
