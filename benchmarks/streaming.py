"""Layers of a model of OPT-2.7B's shape, 5.3 GB of float16 on disk, in little memory.

    python benchmarks/streaming.py [FOLDER]

Random weights are written to FOLDER (a temporary one if left out) in six safetensors files, and deleted in the end. Questions are
asked as a user asks them, with `--memory`: seconds, peak memory of the process (pages of mapped files counted), and what `plan`
said. Besides, blocks alone, in Python: the forward pass, the block with its checks, and 16 products with its Jacobian.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import fresh_process, save, table
from safetensors.torch import save_file
from transformers import AutoModel

from tightpass.models.sizes import opt_config

FILES = 6
QUESTIONS = [
    ("3GiB", "--block mlp --layers 0 --tokens 4 --dtype float32"),
    ("3GiB", "--block mlp --layers 31 --tokens 34 --dtype float32"),
    ("4GiB", "--block mlp --layers 15 --tokens 4"),
    ("4GiB", "--block attn --layers 15 --tokens 4 --dtype float32"),
]
BLOCKS = [("mlp", 0), ("mlp", 31), ("attn", 15), ("layer", 15)]
"""In float64, within `ALONE`."""
ALONE = "3GiB"


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


def case(allowed: str, question: str, model: Path, folder: str) -> dict[str, Any]:
    """Measured and planned."""
    command = str(Path(sys.executable).with_name("tightpass"))
    asked = ["--model", str(model), *question.split(), "--memory", allowed, "--out", f"{folder}/run-{time.time_ns()}"]
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
    found: dict[str, Any] = {
        "question": question,
        "allowed": allowed,
        "seconds": seconds,
        "peak_bytes": usage.ru_maxrss * 1024,
    }
    found["planned_bytes"] = plan["memory"]
    print(json.dumps(found), flush=True)
    return found


def block_alone(model: str, kind: str, layer: int) -> dict[str, Any]:
    """Seconds and peak bytes of this process."""
    import tightpass as tp

    start = time.perf_counter()
    loaded = tp.load_model(model, memory=ALONE)
    assert loaded.streamed is not None, "it was read whole"
    block = tp.block(loaded, kind, layer=layer, token_ids=[2, 100, 1000, 10000])
    J = tp.jacobian(block)
    J @ torch.randn(J.shape[1], 16, dtype=block.x.dtype)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"block": block.name, "seconds": seconds, "peak_bytes": peak}


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if sys.argv[1:] else None) as folder:
        model = Path(folder) / "opt-2.7b-shape"
        model.mkdir()
        stored = write(model)
        blocks = [fresh_process(__file__, str(model), kind, str(layer)) for kind, layer in BLOCKS]
        print(*map(json.dumps, blocks), sep="\n", flush=True)
        cases = [case(allowed, question, model, folder) for allowed, question in QUESTIONS]
    rows = [
        [c["question"], f"{c['seconds']:.0f}", f"{c['peak_bytes'] / 2**30:.2f}", f"{c['planned_bytes'] / 2**30:.2f}"]
        for c in cases
    ]
    print(table(["question", "seconds", "peak, GiB", "planned, GiB"], rows))
    save("streaming", {"stored_bytes": stored, "alone": {"allowed": ALONE, "blocks": blocks}, "cases": cases})


if __name__ == "__main__":
    if len(sys.argv) > 2:
        print(json.dumps(block_alone(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
    else:
        main()
