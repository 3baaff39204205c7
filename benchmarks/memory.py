"""Peak memory of runs against what `plan` says of them: both above the loaded process.

    python benchmarks/memory.py [NUMBER ...]

With numbers those questions alone are asked again, counted from 1; the other results stay, each with its commit.
Each question is asked in a process of its own. There a small run comes first, so that all that is loaded once is; then the
model is loaded, the peak is reset, and the question answered: what lies above that moment is compared with the plan less its
`loaded`. Memory is the same however busy the machine is.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import commit, fresh_process, peak_since_reset, read, reset_peak, save, table

AT_ONCE = 2
"""Processes."""
LAYER = {"layers": "0"}
OPT = {"model": "opt-125m", "weights": "random", "layers": "0"}
LLAMA = {"model": str(Path(__file__).parent / "llama"), "weights": "random", "layers": "0"}
"""A configuration alone, of a family laid out otherwise than OPT."""
MIXTRAL = LLAMA | {"model": str(Path(__file__).parent / "mixtral")}
"""Likewise, of experts."""
TOPK = {"method": "topk"}
FLOAT32 = {"dtype": "float32"}
QUESTIONS: list[dict[str, Any]] = [
    {"block": "mlp", "tokens": 4, **LAYER},
    {"block": "mlp", "tokens": 64, "layers": "all"},
    {"block": "mlp", "tokens": 256, "layers": "0-1"},
    {"block": "mlp", "tokens": 256, "vectors": 16, **LAYER},
    {"block": "mlp", "tokens": 64, "discard_jacobian": True, **FLOAT32, **LAYER},
    {"block": "mlp", "tokens": 256, "k": 1, **TOPK, **LAYER},
    {"block": "mlp", "tokens": 128, "k": 64, "vectors": 16, **TOPK, **FLOAT32, **LAYER},
    {"block": "attn", "tokens": 4, **LAYER},
    {"block": "attn", "tokens": 8, "vectors": 16, **LAYER},
    {"block": "attn", "tokens": 16, **LAYER},
    {"block": "attn", "tokens": 16, "vectors": 16, **FLOAT32, **LAYER},
    {"block": "attn", "tokens": 256, "k": 1, **TOPK, **LAYER},
    {"block": "attn", "tokens": 256, "k": 16, **TOPK, **FLOAT32, **LAYER},
    {"block": "attn", "tokens": 64, "k": 64, "vectors": 16, **TOPK, **LAYER},
    {"block": "head", "head": 1, "tokens": 16, **LAYER},
    {"block": "head", "head": 1, "tokens": 256, "k": 16, **TOPK, **LAYER},
    {"block": "layer", "tokens": 8, **LAYER},
    {"block": "layer", "tokens": 16, "discard_jacobian": True, **FLOAT32, **LAYER},
    {"block": "layer", "tokens": 64, "k": 16, **TOPK, **LAYER},
    {"block": "model", "tokens": 4},
    {"block": "model", "tokens": 12, "vectors": 16, **FLOAT32},
    {"block": "model", "tokens": 32, "k": 1, **TOPK},
    {"block": "mlp", "tokens": 4, "vectors": 16, **OPT},
    {"block": "mlp", "tokens": 16, "discard_jacobian": True, **FLOAT32, **OPT},
    {"block": "mlp", "tokens": 64, "k": 16, **TOPK, **OPT},
    {"block": "attn", "tokens": 4, **OPT},
    {"block": "attn", "tokens": 4, **FLOAT32, **OPT},
    {"block": "attn", "tokens": 64, "k": 1, **TOPK, **OPT},
    {"block": "attn", "tokens": 48, "k": 16, **TOPK, **FLOAT32, **OPT},
    {"block": "head", "head": 3, "tokens": 4, **OPT},
    {"block": "head", "head": 3, "tokens": 32, "k": 64, **TOPK, **OPT},
    {"block": "layer", "tokens": 4, **FLOAT32, **OPT},
    {"block": "layer", "tokens": 32, "k": 16, "vectors": 16, **TOPK, **OPT},
    {"block": "mlp", "tokens": 64, **LLAMA},
    {"block": "attn", "tokens": 12, **LLAMA},
    {"block": "layer", "tokens": 64, "k": 16, **TOPK, **LLAMA},
    {"block": "mlp", "tokens": 16, **MIXTRAL},
    {"block": "mlp", "tokens": 16, **FLOAT32, **MIXTRAL},
]


def resident(kind: str) -> int:
    """Bytes of this process that are its own, or of files that it has mapped."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(kind)).split()[1]) * 1024


def peak_of(question: dict[str, Any]) -> int:
    """Bytes that a run takes above the process with its model."""
    import tightpass as tp
    from tightpass.runs import start

    load, before = start._model, [0]

    def loaded(*asked: Any) -> Any:
        model = load(*asked)
        gc.collect()
        reset_peak()
        before[0] = resident("RssAnon")
        return model

    start._model = loaded
    with tempfile.TemporaryDirectory() as folder:
        tp.run(out=f"{folder}/small", tokens=2, layers="0")
        tp.run(out=f"{folder}/run", **question)
    return peak_since_reset() - resident("RssFile") - before[0]  # pages of libraries come and go as the system likes


def told(question: dict[str, Any]) -> dict[str, Any]:
    """With the model's folder as the repository has it."""
    model = question.get("model")
    return question | {"model": f"benchmarks/{Path(model).name}"} if model and Path(model).is_dir() else question


def case(question: dict[str, Any]) -> dict[str, Any]:
    """Measured, the least of three since the system may take pages of mapped files away before a peak is read; and planned."""
    import tightpass as tp

    peak, plan = min(fresh_process(__file__, json.dumps(question)) for _ in range(3)), tp.plan(**question)
    found = {
        "question": told(question),
        "peak_bytes": peak,
        "planned_bytes": plan.memory - plan.loaded,
        "commit": commit(),
    }
    print(json.dumps(found), flush=True)
    return found


def main() -> None:
    again = [QUESTIONS[int(number) - 1] for number in sys.argv[1:]] or QUESTIONS
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(case, again[::-1]))
    known = {json.dumps(c["question"]): c for c in [*(read("memory")["cases"] if sys.argv[1:] else []), *found]}
    cases = [known[json.dumps(told(question))] for question in QUESTIONS]
    rows = [
        [json.dumps(c["question"]), f"{c['peak_bytes'] / 2**20:.0f}", f"{c['planned_bytes'] / 2**20:.0f}"]
        for c in cases
    ]
    print(table(["question", "peak, MiB", "planned, MiB"], rows))
    save("memory", {"cases": cases}, rates=False)


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        print(peak_of(json.loads(sys.argv[1])))
    else:
        main()
