"""Closed forms of today's families at their real shapes, against torch.func, in float32.

    python benchmarks/families.py [--only NAME]

One layer of each, random weights: times only. Ours writes all blocks, a panel at a time into the same memory, its pieces
included. `jacrev` is vmap(vjp) of 1024 drawn rows at the best of three chunk sizes, times N / 1024: all rows would take minutes.
The bare products are one down·(d_ff, d) product a token. Rows of the last token are compared with ours in the same run.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from common import interleaved, save, seconds
from torch.func import vjp, vmap
from transformers import AutoConfig, AutoModel

import tightpass as tp
from tightpass.jacobians.forms.attention import ClosedAttention
from tightpass.jacobians.forms.base import PANEL_ELEMENTS, Piece
from tightpass.jacobians.forms.closed import closed_form
from tightpass.jacobians.forms.mlp import ClosedMLP
from tightpass.structure import Panel

ROWS, CHUNKS, SOME = 1024, (16, 64, 256), 64
COMMON = {"num_hidden_layers": 1, "vocab_size": 1000, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
SHAPES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "Llama-3-8B": (
        "llama", 12,
        {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336},
    ),
    "Qwen-3-4B": (
        "qwen3", 12,
        {"hidden_size": 2560, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
         "intermediate_size": 9728},
    ),
    "Gemma-2-9B": (
        "gemma2", 12,
        {"hidden_size": 3584, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
         "intermediate_size": 14336, "query_pre_attn_scalar": 256},
    ),
    "Pythia-1.4B": (
        "gpt_neox", 12, {"hidden_size": 2048, "num_attention_heads": 16, "intermediate_size": 8192}
    ),
    "GPT-2": ("gpt2", 34, {"n_layer": 1}),
}  # fmt: skip


def make_block(name: str, kind: str):
    model_type, tokens, sizes = SHAPES[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **(COMMON | sizes))
    model = AutoModel.from_config(config, dtype=torch.float32).eval()
    return tp.block(tp.load_model(model, dtype="float32"), kind, 0, token_ids=list(range(5, 5 + tokens)))


def write_all(block, room: torch.Tensor) -> dict[int, torch.Tensor]:
    """All blocks of a fresh form, a panel after the other into the same memory; returns those of the last token, by column."""
    form = closed_form(block)
    if form is None:
        raise RuntimeError(f"{block.name} has no closed form")
    last: dict[int, torch.Tensor] = {}
    for panel in panels_of(form, room):
        last = {s: b for t, s, b in zip(panel.rows, panel.columns, panel.blocks, strict=True) if t == block.tokens - 1}
    return last


def panels_of(form: Piece, room: torch.Tensor) -> Iterator[Panel]:
    """A panel is good until the next one; forms with a norm behind them bring memory of their own."""
    rows = range(form.tokens)
    if isinstance(form, ClosedMLP):
        for t in rows:
            yield Panel((t,), (t,), form.blocks(range(t, t + 1), room[:1]))
    elif isinstance(form, ClosedAttention):
        for some, first in form.groups(rows):
            places = [(t, s) for t in some for s in range(t + 1)]
            yield Panel(*zip(*places, strict=True), form.write(some, room[: len(places)], first))
    else:
        yield from form.panels(rows)


def room_for(block) -> torch.Tensor:
    """Memory for a panel, touched: the system hands out pages at the speed of a few GB/s."""
    d, heads = block.x.shape[1], block.model.shape.widest.heads
    return block.x.new_zeros(max(block.tokens, heads, PANEL_ELEMENTS // d**2), d, d)


def drawn_rows(block) -> torch.Tensor:
    """Indices of output entries."""
    return torch.randperm(block.x.numel(), generator=torch.Generator().manual_seed(1))[:ROWS]


def rows_by_vjp(block, which: torch.Tensor, chunk: int) -> torch.Tensor:
    """Rows of J, as torch.func.jacrev forms them."""
    _, pull = vjp(block.function(), block.x)
    out = []
    for part in which.split(chunk):
        units = torch.zeros(len(part), block.x.numel()).scatter_(1, part[:, None], 1.0).view(-1, *block.x.shape)
        out.append(vmap(lambda at: pull(at)[0])(units))
    return torch.cat(out)


def worst(block, last: dict[int, torch.Tensor]) -> float:
    """Largest difference of the last token's rows, relative to the largest entry."""
    d, t = block.x.shape[1], block.tokens - 1
    some = torch.arange(t * d, t * d + SOME)
    expected = rows_by_vjp(block, some, 16)
    mine = torch.stack([last.get(s, torch.zeros(d, d))[:SOME] for s in range(block.tokens)], 1)
    return float((mine - expected).abs().max() / expected.abs().max())


def bare_products(block):
    """Of an MLP: one product a token."""
    d, units = block.x.shape[1], block.layers[0].d_ff
    down, up, out = torch.randn(d, units), torch.randn(units, d), torch.empty(d, d)

    def work() -> None:
        for _ in range(block.tokens):
            torch.mm(down, up, out=out)

    return work


def case(name: str, kind: str, rounds: int) -> dict[str, Any]:
    block = make_block(name, kind)
    which, N = drawn_rows(block), block.x.numel()
    rows_by_vjp(block, which[:SOME], min(CHUNKS))  # warm
    sampled = {chunk: seconds(lambda c=chunk: rows_by_vjp(block, which, c)) for chunk in CHUNKS}
    best = min(sampled, key=sampled.__getitem__)
    room = room_for(block)
    difference = worst(block, write_all(block, room))
    if difference > 1e-4:
        raise RuntimeError(f"{name} {kind}: ours differs from torch.func by {difference:.1e}")
    works = {"ours": lambda: write_all(block, room)} | ({"bare": bare_products(block)} if kind == "mlp" else {})
    times, _ = interleaved(works, rounds)
    jacrev, ours = sampled[best] * N / ROWS, times["ours"]["median"]
    return {
        "model": name,
        "kind": kind,
        "tokens": block.tokens,
        "seconds": times,
        "rows_seconds": {str(chunk): found for chunk, found in sampled.items()},
        "chunk": best,
        "jacrev_seconds": jacrev,
        "times_faster": jacrev / ours,
        "over_bare": ours / times["bare"]["median"] if kind == "mlp" else None,
        "worst_difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=SHAPES)
    args = parser.parse_args()
    cases = []
    for name in SHAPES if args.only is None else [args.only]:
        for kind in ("attn", "mlp"):
            cases.append(case(name, kind, args.rounds))
            print(
                {key: value for key, value in cases[-1].items() if key not in ("seconds", "rows_seconds")}, flush=True
            )
    if args.only is None:
        save("families", {"cases": cases})


if __name__ == "__main__":
    main()
